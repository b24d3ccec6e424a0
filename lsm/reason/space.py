"""Idea vectors as points on a sphere: the way from one to another, and how alike they are.

Shape letters: N ideas, D idea width, P points.
"""

from __future__ import annotations

import numpy as np

from lsm.decode.vectors import unit


def between(a_D: np.ndarray, b_D: np.ndarray, points: int) -> np.ndarray:
    """`points` ideas [points, D] on the great circle from a to b, both included (a straight line where they are opposite)."""
    a_D, b_D = unit(a_D), unit(b_D)
    angle = float(np.arccos(np.clip(a_D @ b_D, -1, 1)))
    share_P1 = np.linspace(0, 1, points, dtype=np.float32)[:, None]
    if angle < 1e-4 or angle > np.pi - 1e-4:
        return unit((1 - share_P1) * a_D + share_P1 * b_D)
    return unit(np.sin((1 - share_P1) * angle) * a_D + np.sin(share_P1 * angle) * b_D)


def mean_pairwise_cosine(z_ND: np.ndarray) -> float:
    """Mean cosine of all pairs of rows; 1 = they are all one vector. NaN of fewer than two."""
    n = len(z_ND)
    total = np.square(np.linalg.norm(unit(z_ND).sum(0)))
    return float((total - n) / (n * (n - 1))) if n > 1 else float("nan")
