"""Beside a crammed vector: how many tokens of the same text the superposition code holds in the same bytes, certified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lsm.codes.alphabet import Alphabet
from lsm.codes.spec import MAX_DIMS
from lsm.codes.superposition import HEADER_BYTES, STEP_BYTES, SuperpositionEncoder
from lsm.decode.code_prior import LMPrior
from lsm.decode.code_reader import GREEDY, PLAIN, CodeReader

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

BITS = 8
_SHORTER = 0.9


class SameBytes:
    """The code that fits into so many bytes, with the frozen LM as its prior."""

    def __init__(self, lm: FrozenLM, n_bytes: int) -> None:
        dims = min(MAX_DIMS, (n_bytes - HEADER_BYTES - STEP_BYTES) // 8 * 8)
        alphabet = Alphabet(lm.tokens)
        self.lm, self.encoder = lm, SuperpositionEncoder(alphabet.spec(dims=max(8, dims), bits=BITS), alphabet)
        self._reader, self._prior = CodeReader(self.encoder, device=lm.device), LMPrior(lm)

    def measure(self, ids: Sequence[int]) -> dict[str, Any]:
        """The longest beginning of the text, of those tried, whose code reads back certified.

        Tried are what the code's writer would put into one code, then a tenth less each time.
        """
        n = min(len(ids), self.encoder.spec.tokens_per_code)
        n_bytes = HEADER_BYTES + STEP_BYTES + self.encoder.spec.bytes_per_code
        found: dict[str, Any] = {"dims": self.encoder.spec.dims, "bits": BITS, "bytes": n_bytes, "at_limit": n == len(ids)}
        while n:
            text = self.lm.tokens.decode_exact([ids[:n]])[0]
            codes = self.encoder.encode([text], n_codes=[1])
            reading = self._reader.read(codes, (*PLAIN, *GREEDY), self._prior)
            if reading.certified_B[0] and reading.texts[0] == text:
                return found | {"tokens_certified": n, "utf8_bytes": len(text.encode())}
            n = math.floor(n * _SHORTER)
        return found | {"tokens_certified": 0, "utf8_bytes": 0}
