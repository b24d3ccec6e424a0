"""The normaliser: per-dimension scaling of sentence vectors, fitted in one pass, saved, invertible.

Shape letters: N vectors, D vector width. After the `sonar_normalizer` of large_concept_model (robust scaling).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsm.errors import UserError

Kind = Literal["standard", "robust", "none"]
FILE = "normaliser.safetensors"
_SAMPLE_ROWS = 65_536
_QUARTILES_TO_DEVIATION = 1.3489795  # distance of the quartiles of a standard normal


class Normaliser(nn.Module):
    """x → (x − centre) / scale, dimension by dimension, and back."""

    centre: Tensor
    scale: Tensor

    def __init__(self, centre_D: Tensor, scale_D: Tensor) -> None:
        super().__init__()
        assert centre_D.shape == scale_D.shape and centre_D.ndim == 1
        self.register_buffer("centre", centre_D.float())
        self.register_buffer("scale", scale_D.float())

    @classmethod
    def identity(cls, dim: int) -> Normaliser:
        """The normaliser that changes nothing."""
        return cls(torch.zeros(dim), torch.ones(dim))

    @classmethod
    def fit(cls, chunks: Iterable[np.ndarray], dim: int, kind: Kind = "standard") -> Normaliser:
        """Fit on a stream of arrays [N, D] in one pass and bounded memory; the same stream gives the same bits.

        `standard`: mean and standard deviation. `robust`: median and quartile distance (of an even sample of at most 65,536
        vectors), so that a few odd sentences do not set the scale. A dimension that hardly varies gets a hundredth of the median
        scale instead of its own.

        Raises:
            UserError: a vector holds NaN or infinity, or there is no vector.
        """
        if kind == "none":
            return cls.identity(dim)
        centre_D, scale_D = (_moments if kind == "standard" else _quartiles)(_checked(chunks), dim)
        floor = max(float(np.median(scale_D)) / 100, 1e-6)
        return cls(torch.from_numpy(centre_D), torch.from_numpy(np.maximum(scale_D, floor)))

    def forward(self, z: Tensor) -> Tensor:
        """Raw vectors [..., D] to normalised ones."""
        return (z - self.centre) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Normalised vectors [..., D] back to raw ones."""
        return x * self.scale + self.centre

    def save(self, folder: Path) -> None:
        """Write `normaliser.safetensors` into `folder`."""
        save_file({"centre": self.centre.cpu().contiguous(), "scale": self.scale.cpu().contiguous()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Normaliser:
        """Read what `save` wrote."""
        tensors = load_file(folder / FILE)
        return cls(tensors["centre"], tensors["scale"])


def _checked(chunks: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    for chunk in chunks:
        wide = np.asarray(chunk, dtype=np.float64)
        if not np.isfinite(wide).all():
            raise UserError("the corpus holds vectors with NaN or infinity; find them with: lsm inspect --verify")
        if len(wide):
            yield wide


def _moments(chunks: Iterable[np.ndarray], dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation by merging the chunks' moments (Chan et al. 1979), which does not cancel as a plain sum of squares would."""
    count, mean_D, squares_D = 0, np.zeros(dim), np.zeros(dim)
    for chunk_ND in chunks:
        n = len(chunk_ND)
        chunk_mean_D = chunk_ND.mean(0)
        delta_D = chunk_mean_D - mean_D
        squares_D += ((chunk_ND - chunk_mean_D) ** 2).sum(0) + delta_D**2 * (count * n / (count + n))
        mean_D += delta_D * (n / (count + n))
        count += n
    _require(count)
    return mean_D, np.sqrt(squares_D / count)


def _quartiles(chunks: Iterable[np.ndarray], dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Median and scaled quartile distance of every 2^k-th vector; k grows whenever the sample is full."""
    kept, kept_rows, stride, seen = [], 0, 1, 0
    for chunk_ND in chunks:
        kept.append(chunk_ND[(-seen) % stride :: stride].astype(np.float32))
        kept_rows += len(kept[-1])
        seen += len(chunk_ND)
        while kept_rows > _SAMPLE_ROWS:
            stride *= 2
            kept = [np.concatenate(kept)[::2]]
            kept_rows = len(kept[0])
    _require(seen)
    low_D, median_D, high_D = np.quantile(np.concatenate(kept), [0.25, 0.5, 0.75], axis=0)
    return median_D.astype(np.float64), ((high_D - low_D) / _QUARTILES_TO_DEVIATION).astype(np.float64)


def _require(count: int) -> None:
    if count == 0:
        raise UserError("the normaliser got no training vectors: the corpus is empty, or all of its documents are held out")
