"""What fixes a superposition code, byte for byte (docs/codes.md): the tokens, the dimensions, the seed, the quantiser and its schedule.

Letters: k dimensions of a code, T tokens in a code.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from lsm.errors import UserError
from lsm.files import fingerprint

KIND = "superposition"
FORMAT = 1
BYTE_SYMBOLS = 256
"""Symbols after the vocabulary, one a byte, for texts that the tokenizer does not give back."""

AMPLITUDE_BITS = 14
"""The first token of a code has amplitude 2^14."""
FALL_HALF_BITS = {8: 15, 6: 10, 4: 6}
"""By bits of the quantiser: how far the amplitude may fall from a code's first token to past its last, in halves of a power of two."""
LEAST_MARGIN = 22.0
"""Nats a token that a code keeps at least, by taking fewer tokens: with the LM as prior greedy reading is then nearly always exact."""
MAX_TOKENS = 2**16 - 1
MAX_DIMS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeSpec:
    """One superposition code; equal specs give equal bytes for equal texts, on every machine and in every version."""

    vocabulary: int
    """Number of token ids of the tokenizer, V."""
    vocabulary_sha256: str
    """sha256 of the canonical JSON of its token → id map: what a reader needs to turn ids into text."""
    dims: int = 256
    """Entries of a code, k."""
    bits: int = 8
    """Bits of a stored entry: 8, 6 or 4."""
    seed: int = 0
    fall_half_bits: int = 0
    """How far the amplitude falls; 0 takes what the quantiser allows (`FALL_HALF_BITS`), less leaves room for noise (`fall_above`)."""

    def __post_init__(self) -> None:
        if self.bits not in FALL_HALF_BITS:
            raise UserError(f"--residual-bits {self.bits}: choose from {', '.join(map(str, FALL_HALF_BITS))}")
        if not 8 <= self.dims <= MAX_DIMS or self.dims % 8:
            raise UserError(f"--residual-dims {self.dims}: must be a multiple of 8 from 8 to {MAX_DIMS}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--residual-seed {self.seed}: must lie in 0 … 2^63 − 1")
        if not 0 <= self.fall_half_bits <= FALL_HALF_BITS[self.bits]:
            raise UserError(f"the residual code's fall {self.fall_half_bits} must lie in 1 … {FALL_HALF_BITS[self.bits]}; encode again")
        object.__setattr__(self, "fall_half_bits", self.fall_half_bits or FALL_HALF_BITS[self.bits])

    @property
    def bytes_per_code(self) -> int:
        """Bytes of one code's entries, packed."""
        return self.dims * self.bits // 8

    @property
    def largest_level(self) -> int:
        """Largest quantised value: 127, 31 or 7."""
        return 2 ** (self.bits - 1) - 1

    @cached_property
    def tokens_per_code(self) -> int:
        """Most tokens that one code should hold: as many as keep the margin (nats a token) above `LEAST_MARGIN`."""
        return max(1, most_tokens(self.dims, self.fall_half_bits, LEAST_MARGIN))

    def margin(self, n_tokens: int) -> float:
        """`margin` of a code of so many tokens."""
        return margin(self.dims, self.fall_half_bits, n_tokens)

    def as_dict(self) -> dict[str, Any]:
        """Everything that decides the bytes; what a corpus carries."""
        return {
            "kind": KIND,
            "format": FORMAT,
            **dataclasses.asdict(self),
            "tokens_per_code": self.tokens_per_code,
        }

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over `as_dict`."""
        return fingerprint(self.as_dict())

    @classmethod
    def from_dict(cls, stored: Any, *, origin: str) -> CodeSpec:
        """The spec that `as_dict` gave.

        Raises:
            UserError: of another kind, another format, or other tables than this version's; `origin` is named.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(stored, dict) or stored.get("kind") != KIND or not names <= set(stored):
            raise UserError(f"{origin} does not describe a {KIND} code (found {str(stored)[:80]}); encode again")
        try:
            spec = cls(**{name: stored[name] for name in names})
        except (UserError, TypeError) as error:
            raise UserError(f"{origin} does not describe a code that there is ({error}); encode again") from error
        differing = [f"{key} {stored.get(key)} there, {value} here" for key, value in spec.as_dict().items() if stored.get(key) != value]
        if differing:
            raise UserError(f"{origin} holds another version of the code ({'; '.join(differing)}); read it with the lsm that wrote it")
        return spec


def fall_above(noise: float, bits: int) -> int:
    """The fall, in halves of a power of two, of codes whose entries will carry Gaussian noise of `noise` times their root mean square.

    After the last token Σa² has fallen to 2^−h of what it was, quantiser and noise being what is left: 2^h − 1 = 1/σ².

    Raises:
        UserError: noise louder than the code.
    """
    if not 0 <= noise <= 1:
        raise UserError(f"--residual-noise {noise}: must lie in 0 … 1, in root mean squares of the entries")
    return FALL_HALF_BITS[bits] if noise == 0 else max(1, min(FALL_HALF_BITS[bits], math.floor(math.log2(1 + noise**-2))))


def margin(dims: int, fall: int, n_tokens: int) -> float:
    """c, in nats: half the squared distance that each token of a full code stands off the noise, k/2·(2^(h/T) − 1) with the
    schedule's fall of h/2 powers of two (REFERENCES: a_t² = (1 + 2c/k)^−t)."""
    return dims / 2 * (2 ** (fall / n_tokens) - 1)


def most_tokens(dims: int, fall: int, least: float) -> int:
    """Most tokens whose margin is at least `least`; 0 when one token's is not."""
    n_tokens = 0
    while n_tokens < MAX_TOKENS and margin(dims, fall, n_tokens + 1) >= least:
        n_tokens += 1
    return n_tokens


@lru_cache(maxsize=1024)
def amplitudes(n_tokens: int, fall: int) -> np.ndarray:
    """A_t = ⌊2^(14 − h·t/(2T))⌋ for t = 0 … T−1, int64 [T], by exact integer roots; h = `fall`."""
    roots = [_floor_power_of_two(2 * n_tokens * AMPLITUDE_BITS - fall * t, 2 * n_tokens) for t in range(n_tokens)]
    table = np.array(roots, dtype=np.int64)
    table.setflags(write=False)
    return table


def _floor_power_of_two(numerator: int, denominator: int) -> int:
    """⌊2^(numerator/denominator)⌋ in integers."""
    target, low, high = 1 << numerator, 1, 1 << (numerator // denominator + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if middle**denominator <= target:
            low = middle
        else:
            high = middle
    return low
