"""Semantic vectors in half the bytes: int8 with one float32 scale a row, the same bytes on every machine.

A scale for each row rather than for each dimension: it measures better (`docs/formats.md`), needs no pass over the corpus, and a row stays
what it is when it is copied into another corpus.

Shape letters: S sentences (rows), D vector width.
"""

from __future__ import annotations

import numpy as np

_MOST = np.float32(127)


def to_int8(z_SD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite float16 vectors → int8 [S, D] and float32 [S]; what `from_int8` gives of them turns into the same again."""
    scale_S = np.abs(z_SD).max(axis=1, initial=0).astype(np.float32) / _MOST
    divisor_S1 = np.where(scale_S > 0, scale_S, np.float32(1))[:, None]
    return np.rint(z_SD.astype(np.float32) / divisor_S1).astype(np.int8), scale_S


def from_int8(stored_SD: np.ndarray, scale_S: np.ndarray) -> np.ndarray:
    """int8 [S, D] and float32 [S] → float16 [S, D]."""
    return (stored_SD * scale_S[:, None]).astype(np.float16)
