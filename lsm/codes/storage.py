"""Codes as the arrays that a corpus keeps beside its sentences, and back.

Letters: B sentences, C codes, M codes beyond each sentence's first.
"""

from __future__ import annotations

import numpy as np

from lsm.codes.quantise import pack, unpack
from lsm.codes.spec import CodeSpec
from lsm.codes.superposition import Codes

COLUMNS = {"code_count": np.uint16, "code_tokens": np.uint16, "code_variant": np.uint8, "code_checksum": np.uint32}
"""Per sentence. Beside them stands `code_steps`, a list of uint16 a sentence, here one after the other."""


def to_arrays(codes: Codes) -> dict[str, np.ndarray]:
    """`residual` uint8 [B, bytes] (each sentence's first code, packed), `residual-more` uint8 [M, bytes] (the rest, in order),
    `code_steps` uint16 [C] and the `COLUMNS` [B]."""
    first_B = codes.first_B[:-1]
    packed = pack(codes.q_CK, codes.spec.bits)
    return {
        "residual": packed[first_B],
        "residual-more": np.delete(packed, first_B, axis=0),
        "code_steps": codes.step_C,
        "code_count": codes.n_codes_B,
        "code_tokens": codes.n_tokens_B,
        "code_variant": codes.variant_B,
        "code_checksum": codes.checksum_B,
    }


def from_arrays(spec: CodeSpec, arrays: dict[str, np.ndarray]) -> Codes:
    """What `to_arrays` took apart."""
    count_B = arrays["code_count"].astype(np.int64)
    first_B = np.cumsum(count_B) - count_B
    packed = np.empty((int(count_B.sum()), spec.bytes_per_code), dtype=np.uint8)
    is_first = np.zeros(len(packed), dtype=bool)
    is_first[first_B] = True
    packed[is_first], packed[~is_first] = arrays["residual"], arrays["residual-more"]
    columns = {name: np.asarray(arrays[name]).astype(dtype) for name, dtype in COLUMNS.items()}
    return Codes(
        spec, unpack(packed, spec.bits), np.asarray(arrays["code_steps"]).astype(np.uint16), columns["code_count"],
        columns["code_tokens"], columns["code_variant"], columns["code_checksum"],
    )  # fmt: skip
