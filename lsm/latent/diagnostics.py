"""Is a set of vectors alive? Effective rank, spectrum, collapse, and distance to the truth and to the nearest real sentence.

Shape letters: N vectors, M real sentences, D vector width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_ROWS = 1024


def effective_rank(x_ND: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred vectors (Roy & Vetterli 2007): 1 = a line, at most D."""
    spectrum = _squared_singular_values(x_ND).sqrt()
    if float(spectrum.sum()) < 1e-12:
        return 1.0
    share = spectrum / spectrum.sum()
    return float(torch.special.entr(share).sum().exp())


def pca_spectrum(x_ND: Tensor) -> Tensor:
    """Share of the variance along each principal direction, falling, float64 [D]; zeros where nothing varies."""
    variance = _squared_singular_values(x_ND).flip(0)
    return variance / variance.sum().clamp(min=1e-12)


def principal_dims(x_ND: Tensor, share: float = 0.9) -> int:
    """Principal directions that hold `share` of the variance; 0 where nothing varies."""
    held = pca_spectrum(x_ND).cumsum(0)
    return int((held < share - 1e-9).sum()) + 1 if float(held[-1]) > 0.5 else 0


def collapse(x_ND: Tensor, truth_ND: Tensor) -> str | None:
    """Why predictions are dead beside the truths that they stand for; None when they are alive.

    Dead: nearly one vector (mean pairwise cosine above .9, and nearer to 1 than the truths' by a half), or spread over less than a
    twentieth of the truths' effective rank.
    """
    cosine, real_cosine = mean_pairwise_cosine(x_ND), mean_pairwise_cosine(truth_ND)
    if cosine > 0.9 and 1 - cosine < (1 - real_cosine) / 2:
        return f"predictions are nearly one vector: mean pairwise cosine {cosine:.3f}, of the true sentences {real_cosine:.3f}"
    rank, real_rank = effective_rank(x_ND), effective_rank(truth_ND)
    if rank < real_rank / 20:
        return f"predictions keep to few directions: effective rank {rank:.1f}, of the true sentences {real_rank:.1f}"
    return None


def mean_pairwise_cosine(x_ND: Tensor) -> float:
    """Mean cosine over all pairs of different vectors, from the length of their sum: 0.999 = dead."""
    unit_ND = F.normalize(x_ND.double(), dim=-1)
    n = len(unit_ND)
    if n < 2:
        return 1.0
    return float((unit_ND.sum(0).square().sum() - unit_ND.square().sum()) / (n * (n - 1)))


def l2_to_truth(x_ND: Tensor, truth_ND: Tensor) -> float:
    """Mean Euclidean distance of each vector to its true one."""
    return float((x_ND.float() - truth_ND.float()).norm(dim=-1).mean())


def l2_to_nearest(x_ND: Tensor, real_MD: Tensor) -> float:
    """Mean Euclidean distance of each vector to the nearest real sentence (ℓ2-r of the Large Concept Model paper)."""
    chunks = x_ND.float().split(_CHUNK_ROWS)
    return float(torch.cat([torch.cdist(chunk, real_MD.float()).min(-1).values for chunk in chunks]).mean())


def _squared_singular_values(x_ND: Tensor) -> Tensor:
    """Of the centred vectors, rising, [D]: eigenvalues of the D × D covariance, since N may be large."""
    centred = x_ND.double() - x_ND.double().mean(0)
    return torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
