"""What a space of idea vectors looks like: maps, ways from one to another, clusters, collapse, and whether alike inputs have alike ideas.

Shape letters: N inputs, D idea width, E another width, K clusters, P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lsm.decode.vectors import unit
from lsm.latent.diagnostics import mean_pairwise_cosine


def between(a_D: np.ndarray, b_D: np.ndarray, points: int) -> np.ndarray:
    """`points` ideas [points, D] on the great circle from a to b, both included (a straight line where they are opposite)."""
    a_D, b_D = unit(a_D), unit(b_D)
    angle = float(np.arccos(np.clip(a_D @ b_D, -1, 1)))
    share_P1 = np.linspace(0, 1, points, dtype=np.float32)[:, None]
    if angle < 1e-4 or angle > np.pi - 1e-4:
        return unit((1 - share_P1) * a_D + share_P1 * b_D)
    return unit(np.sin((1 - share_P1) * angle) * a_D + np.sin(share_P1 * angle) * b_D)


def collapse(cosine: float, n_unique: int, n: int) -> str | None:
    """What has collapsed, in words; None where ideas differ and so do the texts made of them."""
    found = []
    if cosine > 0.98:
        found.append(f"idea vectors have collapsed (mean pairwise cosine {cosine:.3f})")
    if n > 1 and n_unique <= max(1, n // 20):
        found.append(f"outputs have collapsed ({n_unique} different texts of {n})")
    return "; ".join(found) or None


def pairwise_cosine(z_ND: np.ndarray) -> float:
    """Mean cosine of all pairs of rows; 1 = they are all one vector."""
    return mean_pairwise_cosine(torch.from_numpy(z_ND))


def agreement(a_ND: np.ndarray, b_NE: np.ndarray) -> float:
    """Spearman's ρ between the cosines of all pairs of rows in one space and in the other."""
    from scipy.stats import spearmanr

    upper = np.triu_indices(len(a_ND), 1)
    cosines = [(unit(z) @ unit(z).T)[upper] for z in (a_ND, b_NE)]
    return float(spearmanr(*cosines).statistic)


@dataclass(frozen=True)
class IdeaMap:
    """Two views of ideas, and clusters."""

    pca_N2: np.ndarray
    pca_explained: list[float]
    """Share of the variance of both axes."""
    tsne_N2: np.ndarray
    cluster_N: np.ndarray
    centres_KD: np.ndarray
    """Of unit length."""
    silhouette: float
    """Mean silhouette by cosine (Rousseeuw 1987): 1 = clusters stand apart, 0 = they touch."""


def map_ideas(z_ND: np.ndarray, *, clusters: int, seed: int) -> IdeaMap:
    """PCA, t-SNE (cosine) and k-means of ideas; the same ideas and seed give the same map on one machine."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    z_ND = unit(z_ND)
    pca = PCA(2, random_state=seed).fit(z_ND)
    perplexity = min(30.0, (len(z_ND) - 1) / 3)
    tsne_N2 = TSNE(2, perplexity=perplexity, metric="cosine", init="random", random_state=seed).fit_transform(z_ND)
    means = KMeans(clusters, n_init=10, random_state=seed).fit(z_ND)
    several = 1 < len(set(means.labels_.tolist())) < len(z_ND)
    silhouette = float(silhouette_score(z_ND, means.labels_, metric="cosine")) if several else float("nan")
    return IdeaMap(
        pca.transform(z_ND), [float(x) for x in pca.explained_variance_ratio_], tsne_N2, means.labels_, unit(means.cluster_centers_),
        silhouette,
    )  # fmt: skip
