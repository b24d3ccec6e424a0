"""What a space of idea vectors looks like: maps, clusters, collapse, and whether alike inputs have alike ideas.

Shape letters: N inputs, D idea width, E another width, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lsm.decode.vectors import unit


def collapse(cosine: float, n_unique: int, n: int) -> str | None:
    """What has collapsed, in words; None where ideas differ and so do the texts made of them."""
    found = []
    if cosine > 0.98:
        found.append(f"idea vectors have collapsed (mean pairwise cosine {cosine:.3f})")
    if n > 1 and n_unique <= max(1, n // 20):
        found.append(f"outputs have collapsed ({n_unique} different texts of {n})")
    return "; ".join(found) or None


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
