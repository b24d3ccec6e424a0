"""The superposition residual code: the tokens of a text, each bound to its position and fading with it, summed into k integers.

Exact recall, larger than its text; not compression and nothing to plan in. Sparse superposition codes (Joseph & Barron 2012; Rush, Greig
& Venkataramanan 2015) over a frozen LM's tokens; specified bit for bit in docs/codes.md.

Letters: B texts, C codes (one or more a text, in order), N tokens of all texts, T tokens in a code, k entries, V symbols.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lsm.codes import quantise
from lsm.codes.alphabet import Alphabet, checksum
from lsm.codes.signs import position_signs, token_signs
from lsm.codes.spec import BYTE_SYMBOLS, CodeSpec, amplitudes
from lsm.errors import UserError

_TOKENS_AT_ONCE = 1 << 11
"""Their terms stay in the cache of a core."""
_EXACT_IN_FLOAT32 = 1 << 10
"""Terms whose sum float32 holds exactly."""
IN_BYTES = 1 << 7
"""Bit of the variant that says: symbols are bytes. The bits below it are the salt."""
SALTS = IN_BYTES
HEADER_BYTES = 2 + 2 + 1 + 4
"""n_tokens, n_codes, variant, checksum."""
STEP_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Codes:
    """The codes of B texts and what a reader must know beside them."""

    spec: CodeSpec
    q_CK: np.ndarray
    """int8 [C, k]; the codes of text b are rows first_B[b] … first_B[b] + n_codes_B[b] − 1."""
    step_C: np.ndarray
    """uint16 [C]: quantiser step."""
    n_codes_B: np.ndarray
    """uint16 [B], at least 1."""
    n_tokens_B: np.ndarray
    """uint16 [B]."""
    variant_B: np.ndarray
    """uint8 [B]: salt, and `IN_BYTES`."""
    checksum_B: np.ndarray
    """uint32 [B]: of the text's UTF-8."""

    def __len__(self) -> int:
        return len(self.n_tokens_B)

    @cached_property
    def first_B(self) -> np.ndarray:
        """First code of each text and, last, C: int64 [B + 1]."""
        return np.concatenate([[0], np.cumsum(self.n_codes_B, dtype=np.int64)]).astype(np.int64)

    @property
    def bytes_B(self) -> np.ndarray:
        """Bytes that each text's codes take with header, steps and checksum, float64 [B]."""
        return HEADER_BYTES + self.n_codes_B.astype(np.float64) * (STEP_BYTES + self.spec.bytes_per_code)

    def select(self, rows: Sequence[int] | np.ndarray) -> Codes:
        """The codes of some texts, in the order asked for."""
        rows = np.asarray(rows, dtype=np.int64)
        spans = [np.arange(self.first_B[row], self.first_B[row + 1]) for row in rows]
        codes = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        fields = {name: getattr(self, name)[rows] for name in ("n_codes_B", "n_tokens_B", "variant_B", "checksum_B")}
        return Codes(self.spec, self.q_CK[codes], self.step_C[codes], **fields)

    @staticmethod
    def join(pieces: Sequence[Codes]) -> Codes:
        """One after the other; all of one spec."""
        assert pieces and all(piece.spec == pieces[0].spec for piece in pieces)
        names = [field.name for field in dataclasses.fields(Codes) if field.name != "spec"]
        return Codes(pieces[0].spec, **{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names})

    def same_as(self, other: Codes) -> np.ndarray:
        """Which texts have the same codes, steps and header in both, bool [B]."""
        same_B = np.ones(len(self), dtype=bool)
        for name in ("n_codes_B", "n_tokens_B", "variant_B", "checksum_B"):
            same_B &= getattr(self, name) == getattr(other, name)
        for b in np.flatnonzero(same_B):
            mine, theirs = slice(*self.first_B[b : b + 2]), slice(*other.first_B[b : b + 2])
            same_B[b] = np.array_equal(self.q_CK[mine], other.q_CK[theirs]) and np.array_equal(self.step_C[mine], other.step_C[theirs])
        return same_B


class SuperpositionEncoder:
    """Texts → codes. Needs the tokenizer, never an LM."""

    def __init__(self, spec: CodeSpec, alphabet: Alphabet) -> None:
        """Raises `UserError` when `spec` was made for another tokenizer."""
        alphabet.require(spec)
        self.spec, self.alphabet = spec, alphabet
        self._positions: dict[int, np.ndarray] = {}

    def require(self, spec: CodeSpec) -> None:
        """Raise `UserError`, showing both fingerprints, unless codes of `spec` are this encoder's."""
        if spec != self.spec:
            raise UserError(
                f"these residual codes have fingerprint {spec.fingerprint} ({spec.dims} dims, {spec.bits} bits, seed {spec.seed}), "
                f"{self.spec.fingerprint} ({self.spec.dims} dims, {self.spec.bits} bits, seed {self.spec.seed}) is needed"
            )

    @cached_property
    def codebook_VK(self) -> np.ndarray:
        """±1 of every token and byte, int8 [V + 256, k]."""
        return token_signs(self.spec.seed, self.spec.vocabulary + BYTE_SYMBOLS, self.spec.dims)

    def positions(self, salt: int, stop: int) -> np.ndarray:
        """±1 of the positions 0 … stop − 1, int8 [stop, k]."""
        known = self._positions.get(salt)
        if known is None or len(known) < stop:
            known = self._positions[salt] = position_signs(self.spec.seed, salt, max(stop, 64), self.spec.dims)
        return known[:stop]

    def encode(self, texts: Sequence[str], *, salts: Sequence[int] | None = None, n_codes: Sequence[int] | None = None) -> Codes:
        """Codes of each text; a function of the text alone, whatever stands beside it.

        Args:
            salts: 0 … 127 for each text, other signs for its positions: another try at a text that does not read back; None = 0.
            n_codes: codes for each text; None takes as few as `CodeSpec.tokens_per_code` allows.

        Raises:
            UserError: a text that is no valid Unicode or too long.
        """
        rows = self.alphabet.symbols(texts)
        wanted = [-(-len(row) // self.spec.tokens_per_code) for row in rows] if n_codes is None else n_codes
        n_codes_B = np.array([max(1, n) for n in wanted], dtype=np.uint16)
        in_bytes = [IN_BYTES if row and row[0] >= self.alphabet.size else 0 for row in rows]
        variant_B = np.array(in_bytes, dtype=np.uint8) | np.array(0 if salts is None else salts, dtype=np.uint8)
        return self.encode_symbols(rows, n_codes_B, variant_B, np.array([checksum(text) for text in texts], dtype=np.uint32))

    def encode_symbols(self, rows: Sequence[Sequence[int]], n_codes_B: np.ndarray, variant_B: np.ndarray, checksum_B: np.ndarray) -> Codes:
        """Codes of symbols that are known already, such as a decoder's; arguments as in `Codes`."""
        n_tokens_B = np.array([len(row) for row in rows], dtype=np.int64)
        sums = np.zeros((int(n_codes_B.sum(dtype=np.int64)), self.spec.dims), dtype=np.int64)
        code = start = 0
        while start < len(rows):
            stop = start + max(1, int(np.searchsorted(np.cumsum(n_tokens_B[start:]), _TOKENS_AT_ONCE, side="right")))
            codes = int(n_codes_B[start:stop].sum(dtype=np.int64))
            self._add(sums[code : code + codes], rows[start:stop], n_codes_B[start:stop], variant_B[start:stop])
            code, start = code + codes, stop
        q_CK, step_C = quantise.quantise(sums, self.spec)
        return Codes(self.spec, q_CK, step_C, n_codes_B, n_tokens_B.astype(np.uint16), variant_B, checksum_B)

    def _add(self, sums_CK: np.ndarray, rows: Sequence[Sequence[int]], n_codes_B: np.ndarray, variant_B: np.ndarray) -> None:
        """Add every token of some texts into the sums of their codes."""
        if not any(rows):
            return
        sign = [self.positions(variant & (SALTS - 1), len(row)) for row, variant in zip(rows, variant_B.tolist(), strict=True)]
        ids_N = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64)
        # Sums of up to 2^10 integers of up to 2^14 are exact in float32, in any order, and of all that a code may hold in float64.
        terms_NK = (self.codebook_VK[ids_N] * np.concatenate(sign)).astype(np.float32)
        code = at = 0
        for row, n_codes in zip(rows, n_codes_B.tolist(), strict=True):
            for begin, end in pieces(len(row), n_codes):
                exact = np.float32 if end - begin <= _EXACT_IN_FLOAT32 else np.float64
                amplitude_T = amplitudes(end - begin, self.spec.fall_half_bits).astype(exact)
                sums_CK[code] = amplitude_T @ terms_NK[at : at + end - begin].astype(exact, copy=False)
                at, code = at + end - begin, code + 1


def pieces(n_tokens: int, n_codes: int) -> list[tuple[int, int]]:
    """Which tokens [begin, end) each code of a text holds: code i from ⌊i·T/n⌋ to ⌊(i+1)·T/n⌋."""
    edges = [n_tokens * i // n_codes for i in range(n_codes + 1)]
    return list(itertools.pairwise(edges))
