"""Numbers in few bits: groups of entries with a float16 scale each, symmetric around zero.

Letters: N entries, G groups (the last may be short).
"""

from __future__ import annotations

import numpy as np


def to_levels(entries_N: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """scales float16 [G] and levels int8 [N].

    entry ≈ level · scale, with |level| ≤ L = 2^(bits−1) − 1 and scale = the group's largest magnitude / L.
    """
    most = 2 ** (bits - 1) - 1
    padded = np.pad(entries_N, (0, -len(entries_N) % group)).reshape(-1, group)
    scales_G = np.minimum(np.abs(padded).max(axis=1, initial=0) / most, np.finfo(np.float16).max).astype("<f2")
    step = np.where(scales_G > 0, scales_G.astype(np.float32), 1)[:, None]
    return scales_G, np.clip(np.rint(padded / step), -most, most).astype(np.int8).ravel()[: len(entries_N)]


def from_levels(scales_G: np.ndarray, levels_N: np.ndarray, group: int) -> np.ndarray:
    """float32 [N] that a reader of scales and levels gets."""
    return levels_N.astype(np.float32) * np.repeat(scales_G.astype(np.float32), group)[: len(levels_N)]


def level_bytes(n: int, bits: int, group: int) -> int:
    """Bytes of n entries with their scales."""
    return 2 * -(-n // group) + -(-n * bits // 8)
