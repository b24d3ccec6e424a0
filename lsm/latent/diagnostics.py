"""Is a set of vectors alive? Effective rank, spread, and distance to the truth and to the nearest real sentence.

Shape letters: N vectors, M real sentences, D vector width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_ROWS = 1024


def effective_rank(x_ND: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred vectors (Roy & Vetterli 2007): 1 = a line, at most D."""
    centred = x_ND.double() - x_ND.double().mean(0)
    # Eigenvalues of the D × D covariance: N may be large.
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).sqrt()
    if float(spectrum.sum()) < 1e-12:
        return 1.0
    share = spectrum / spectrum.sum()
    return float(torch.special.entr(share).sum().exp())


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
