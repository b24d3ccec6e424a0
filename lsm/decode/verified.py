"""Codes that are known to read back: each is decoded where it is made, and made again with other signs or more codes until it is certified.

Letters: B texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lsm.codes.superposition import Codes, SuperpositionEncoder
from lsm.decode.code_prior import Prior
from lsm.decode.code_reader import CodeReader
from lsm.decode.code_search import Rung
from lsm.errors import UserError

SALT_TRIES = 3
"""Tries with as many codes as the spec asks for, before there is one code more."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """Codes that all read back, and what that took."""

    codes: Codes
    n_again: int
    """Texts that did not read back at the first try."""
    n_more_codes: int
    """Texts that took more codes than the spec asks for."""


def encode_verified(
    encoder: SuperpositionEncoder, reader: CodeReader, texts: Sequence[str], ladder: Sequence[Rung], prior: Prior | None = None
) -> Verified:
    """Encode `texts` so that `reader` certifies every one with `ladder` and `prior`.

    A text that fails is tried with `SALT_TRIES` salts, then with a quarter more codes, and so on until a code holds a single token.

    Raises:
        UserError: a single token a code is not read back: the code has too few dimensions for its vocabulary.
    """
    codes = encoder.encode(texts)
    finished: dict[int, Codes] = {}
    open_B, tried = np.arange(len(texts)), 0
    minimal_B = codes.n_codes_B.copy()
    n_again = 0
    while True:
        certified = reader.read(codes, ladder, prior).certified_B
        finished |= {int(b): codes.select([place]) for place, b in enumerate(open_B) if certified[place]}
        failed = np.flatnonzero(~certified)
        if not tried:
            n_again = len(failed)
        if not len(failed):
            break
        open_B, tried = open_B[failed], tried + 1
        n_codes, n_tokens = codes.n_codes_B[failed].astype(np.int64), codes.n_tokens_B[failed].astype(np.int64)
        if tried % SALT_TRIES == 0:
            if (stuck := n_codes >= np.maximum(n_tokens, 1)).any():
                text = texts[int(open_B[stuck.argmax()])]
                raise UserError(
                    f"the text {text[:60]!r} cannot be read back from codes of {encoder.spec.dims} dims × {encoder.spec.bits} bits, even "
                    "with one token a code; take more --residual-dims"
                )
            n_codes = np.minimum(n_codes + np.maximum(1, n_codes // 4), n_tokens)
        salts = np.full(len(open_B), tried % SALT_TRIES)
        codes = encoder.encode([texts[b] for b in open_B], salts=salts.tolist(), n_codes=n_codes.tolist())
    whole = Codes.join([finished[b] for b in range(len(texts))]) if texts else codes
    return Verified(whole, n_again, int((whole.n_codes_B > minimal_B).sum()))
