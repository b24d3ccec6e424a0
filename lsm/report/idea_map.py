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
    figure = plt.figure(figsize=(11, 5.6 + 0.2 * len(names)))
    grid = figure.add_gridspec(2, 2, height_ratios=(5, 0.4 + 0.2 * len(names)))
    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")
    for column, (points_N2, title) in enumerate(((pca_N2, f"PCA ({sum(explained):.0%} of the variance)"), (tsne_N2, "t-SNE"))):
        axis = figure.add_subplot(grid[0, column])
        for number in range(len(names)):
            mine = cluster_N == number
            axis.scatter(points_N2[mine, 0], points_N2[mine, 1], s=14, color=colours(number % colours.N))
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=10)
    below = figure.add_subplot(grid[1, :])
    below.axis("off")
    for number, name in enumerate(names):
        words = f"{number}  {name if len(name) < 130 else name[:127] + '…'}"
        below.scatter([], [], s=14, color=colours(number % colours.N), label=words)
    below.legend(loc="upper left", fontsize=8, frameon=False, title="cluster: what its centre says", title_fontsize=8, alignment="left")
    return _save(figure, path)
