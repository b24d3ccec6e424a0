"""Integer sums to few bits and back, in integer arithmetic only; and entries packed to bytes.

Letters: C codes, k entries.
"""

from __future__ import annotations

import numpy as np

from lsm.codes.spec import CodeSpec

LARGEST_STEP = 2**16 - 1


def quantise(sum_CK: np.ndarray, spec: CodeSpec) -> tuple[np.ndarray, np.ndarray]:
    """Quantised entries int8 [C, k] and steps uint16 [C] of integer sums int64 [C, k].

    step = ⌈largest |sum| / largest level⌉, from 1 to 65,535; entry = ⌊(2·|sum| + step) / (2·step)⌋ with the sum's sign, no larger
    than the largest level. (Clipping the largest sums for a finer step was measured: it only loses.)
    """
    magnitude_CK = np.abs(sum_CK)
    step_C = np.clip(-(-magnitude_CK.max(axis=1, initial=0) // spec.largest_level), 1, LARGEST_STEP)
    level_CK = np.minimum((2 * magnitude_CK + step_C[:, None]) // (2 * step_C[:, None]), spec.largest_level)
    return (np.sign(sum_CK) * level_CK).astype(np.int8), step_C.astype(np.uint16)


def pack(q_CK: np.ndarray, bits: int) -> np.ndarray:
    """Entries as bytes, uint8 [C, k·bits/8]: two's complement of `bits` bits each, lowest bit first."""
    if bits == 8:
        return q_CK.view(np.uint8)
    bits_CKb = np.unpackbits(q_CK.view(np.uint8)[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(bits_CKb.reshape(len(q_CK), q_CK.shape[1] * bits), axis=1, bitorder="little")


def unpack(packed_CB: np.ndarray, bits: int) -> np.ndarray:
    """What `pack` packed, int8 [C, k]."""
    packed_CB = np.ascontiguousarray(packed_CB)
    if bits == 8:
        return packed_CB.view(np.int8)
    bits_CKb = np.unpackbits(packed_CB, axis=1, bitorder="little").reshape(len(packed_CB), -1, bits)
    whole_CK = np.packbits(bits_CKb, axis=-1, bitorder="little")[..., 0].astype(np.int16)
    return np.where(whole_CK >= 2 ** (bits - 1), whole_CK - 2**bits, whole_CK).astype(np.int8)
