"""The map of an idea space as a PNG: PCA and t-SNE side by side, coloured by cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lsm.report.plots import _pyplot, _save


def plot_idea_map(
    pca_N2: np.ndarray, tsne_N2: np.ndarray, cluster_N: np.ndarray, names: Sequence[str], path: Path, *, explained: Sequence[float]
) -> Path:
    """`names` are the clusters' texts, written below."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2 + 0.2 * len(names)))
    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")
    for axis, points_N2, title in ((axes[0], pca_N2, f"PCA ({sum(explained):.0%} of the variance)"), (axes[1], tsne_N2, "t-SNE")):
        for number in range(len(names)):
            mine = cluster_N == number
            axis.scatter(points_N2[mine, 0], points_N2[mine, 1], s=14, color=colours(number % colours.N), label=str(number))
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    words = [f"{number}  {name if len(name) < 130 else name[:127] + '…'}" for number, name in enumerate(names)]
    handles, labels = axes[0].get_legend_handles_labels()
    del labels
    figure.legend(handles, words, loc="lower left", fontsize=8, frameon=False, title="cluster: what its centre says", title_fontsize=8)
    figure.subplots_adjust(bottom=0.08 + 0.05 * len(names))
    return _save(figure, path)
