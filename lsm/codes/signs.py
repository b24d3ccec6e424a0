"""Signs from a counter-based hash: the codebook of tokens and the signs of positions, the same on every machine (docs/codes.md).

Letters: N rows of signs, k entries of a row.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1, _FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
TOKEN_STREAM, POSITION_STREAM = 1, 2


def mix(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014) on uint64, wrapping."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _FACTOR_1
        x = (x ^ (x >> np.uint64(27))) * _FACTOR_2
        return x ^ (x >> np.uint64(31))


def signs(seed: int, stream: int, index_N: np.ndarray, dims: int) -> np.ndarray:
    """Rows of ±1, int8 [N, k]: entry j of row i is +1 when bit j mod 64 of the hash of (seed, stream, i, j div 64) is set.

    The hash of several numbers is mix(… mix(mix(first) xor second) … xor last).
    """
    key = mix(mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(stream))
    rows_N1 = mix(key ^ np.asarray(index_N, dtype=np.uint64))[:, None]
    words_NW = mix(rows_N1 ^ np.arange(-(-dims // 64), dtype=np.uint64))
    bits_NK = np.unpackbits(words_NW.astype("<u8").view(np.uint8), axis=1, bitorder="little")[:, :dims]
    return (bits_NK.astype(np.int8) << 1) - np.int8(1)


def token_signs(seed: int, n_symbols: int, dims: int) -> np.ndarray:
    """The codebook: one row a symbol, int8 [n_symbols, k]."""
    return signs(seed, TOKEN_STREAM, np.arange(n_symbols), dims)


def position_signs(seed: int, salt: int, stop: int, dims: int) -> np.ndarray:
    """Signs of the token positions 0 … stop − 1 of a text, int8 [stop, k]; another `salt`, other signs."""
    return signs(seed, POSITION_STREAM, (salt << 32) + np.arange(stop, dtype=np.uint64), dims)
