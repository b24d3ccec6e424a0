"""What every decoder does to vectors first: refuse those that it cannot read, and keep the direction of the others.

Shape letters: B vectors, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lsm.errors import UserError

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts → vectors float32 [B, D] of the encoder whose vectors are decoded."""


def check_vectors(z_BD: np.ndarray, dim: int, encoder: dict[str, Any], *, refuse_zeros: bool = False) -> None:
    """Refuse vectors that a decoder of `encoder` cannot read.

    Raises:
        UserError: wrong shape, NaN or infinity, or (for a user's own vectors) zeros only; the row is named.
    """
    if z_BD.ndim != 2 or z_BD.shape[1] != dim:
        raise UserError(
            f"vectors have shape {list(z_BD.shape)}, this decoder reads [n, {dim}] of encoder {encoder.get('name')}; "
            "encode with that encoder, or choose another --decoder, --adapter or --index"
        )
    for what, bad_B in (("NaN or infinity", ~np.isfinite(z_BD).all(axis=1)), ("zeros only", ~z_BD.any(axis=1) & refuse_zeros)):
        if bad_B.any():
            row, count = int(bad_B.argmax()), int(bad_B.sum())
            raise UserError(f"vector {row} holds {what} ({count} such rows); leave it out or encode its text again")


def unit(z_BD: np.ndarray) -> np.ndarray:
    """The vectors [..., D] as float32 of unit length; zeros stay zeros."""
    z_BD = np.ascontiguousarray(z_BD, dtype=np.float32)
    return z_BD / np.maximum(np.linalg.norm(z_BD, axis=-1, keepdims=True), 1e-12)
