"""Plots of the scoreboards as PNG files (matplotlib without a display)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsm.files import atomic_write

_OURS, _CONTROL = "#1f5f8b", "#b8b8b8"


def plot_next_sentence(rows: Sequence[dict[str, Any]], path: Path, *, ours: str = "model") -> Path:
    """Recall@1/10/100 and in-document recall@1 of every predictor, with intervals; rows whose name starts with `ours` stand out."""
    panels = (
        ("recall_at_1", "recall@1"),
        ("recall_at_10", "recall@10"),
        ("recall_at_100", "recall@100"),
        ("document_recall_at_1", "in-document recall@1"),
    )
    labels = [row["predictor"] for row in rows]
    return _bars(rows, labels, panels, path, ours=ours, title="True next sentence among the held-out ones")


def plot_context_curve(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Mean reciprocal rank and cosine against how much of the context the model reads, or reads in order."""
    panels = []
    for metric, label in (("mrr", "mean reciprocal rank"), ("cosine", "cosine to the truth")):
        curves = {}
        for kind in ("truncated", "shuffled beyond"):
            mine = sorted((row["length"], row[metric]) for row in rows if row["context"] in (kind, "whole"))
            curves[kind] = ([n for n, _ in mine], [value for _, value in mine])
        panels.append(Panel(label, "last sentences as they are", label, curves))
    return plot_curves(panels, path, title="What the model uses of its context")


def plot_drift(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Each measure of roll-outs against the number of steps, one line a way."""
    named = {
        "cosine_truth": "cosine to the truth",
        "cosine_start": "cosine to what was read",
        "cosine_before": "cosine to the vector before",
        "l2_nearest": "distance to the nearest sentence",
    }
    panels = []
    for metric, label in named.items():
        curves = {}
        for way in dict.fromkeys(row["way"] for row in rows):
            mine = [(row["last_step"], row[metric]) for row in rows if row["way"] == way]
            curves[way] = ([step for step, _ in mine], [value for _, value in mine])
        panels.append(Panel(label, "steps", label, curves, log_x=True))
    return plot_curves(panels, path, title="Free-running roll-outs")


def plot_roundtrip(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Exact match, BLEU, token F1 and both cosines of every decoder and its controls, with intervals."""
    panels = (
        ("exact_match", "exact match"),
        ("bleu", "BLEU"),
        ("token_f1", "token F1"),
        ("cosine", "cosine"),
        ("cosine_independent", "cosine (independent)"),
    )
    labels = [row["label"] for row in rows]
    own = [row["label"] for row in rows if row["vector"] == "own"]
    return _bars(rows, labels, panels, path, ours=tuple(own), title="Round trip: text → vector → text")


def plot_roundtrip_by_length(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Token F1 and cosine against the sentence's length, one line a decoder (own vectors only)."""
    plt = _pyplot()
    own = [row for row in rows if row["vector"] == "own"]
    lengths = list(dict.fromkeys(row["length"] for row in own))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for axis, (key, heading) in zip(axes, (("token_f1", "token F1"), ("cosine", "cosine of the re-encoding")), strict=True):
        for label in dict.fromkeys(row["label"] for row in own):
            points = {row["length"]: row for row in own if row["label"] == label}
            where = [n for n, length in enumerate(lengths) if length in points]
            values = [points[lengths[n]][key] for n in where]
            errors = [_error(points[lengths[n]], key) for n in where]
            axis.errorbar(where, values, yerr=list(zip(*errors, strict=True)), marker="o", capsize=3, label=label)
        axis.set_xticks(range(len(lengths)), lengths)
        axis.set_xlabel("characters")
        axis.set_title(heading, fontsize=10)
        axis.set_ylim(0, 1.02)
    axes[0].legend(fontsize=8)
    return _save(figure, path)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of curves: name → (x, y); `points` draws them unconnected. Without `legend` another panel names them."""

    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_x: bool = False
    points: bool = False
    legend: bool = True


def plot_curves(panels: Sequence[Panel], path: Path, *, title: str) -> Path:
    """Curves side by side."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for label, (x, y) in panel.curves.items():
            axis.plot(x, y, "." if panel.points else "o-", markersize=4, label=label)
        if panel.log_x:
            axis.set_xscale("log", base=2)
        axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axis.grid(alpha=0.3)
        if panel.legend:
            axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


_COST_COLOURS = {
    "token-full": "#c0504d", "token-window": "#e39c5b", "latent": "#9cc3dd", "latent-encoding": "#3a82b5",
    "latent-encoding-decoding": "#17405e",
}  # fmt: skip


def plot_cost(
    rows: Sequence[dict[str, Any]], path: Path, *, slopes: Sequence[dict[str, Any]] = (), crossings: Sequence[dict[str, Any]] = ()
) -> Path:
    """Seconds and peak memory of each system against tokens T, both axes logarithmic, one column a pass; named at the lines' ends.

    The seconds' names carry their slope. What was not run is drawn hollow at the end of a dotted line, where its time was extrapolated.
    Of `crossings` those of latent + encoding with full attention are marked.
    """
    plt = _pyplot()
    kinds = {"forward": "Forward pass", "training": "Training step"}
    kinds = {kind: title for kind, title in kinds.items() if any(row["pass"] == kind for row in rows)}
    figure, axes = plt.subplots(2, len(kinds), figsize=(6.6 * len(kinds), 8.6), sharex=True, sharey="row", squeeze=False)
    lengths = sorted({row["length"] for row in rows})
    powers = {(row["system"], row["pass"]): rf" $\propto T^{{{row['slope']:.2f}}}$" for row in slopes}
    named = []
    for axis_row, key in zip(axes, ("seconds", "peak_mebibytes"), strict=True):
        for axis, kind in zip(axis_row, kinds, strict=True):
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.25, which="major")
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
            axis.xaxis.minorticks_off()
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            ends = []
            for system, colour in _COST_COLOURS.items():
                mine = [row for row in rows if (row["system"], row["pass"]) == (system, kind)]
                points = [(row["tokens"], row[key]) for row in mine if row.get(key)]
                if not points:
                    continue
                axis.plot(*zip(*points, strict=True), "o-", color=colour, markersize=5, linewidth=2)
                beyond = [(row["tokens"], row["extrapolated_seconds"]) for row in mine if row.get("extrapolated_seconds")]
                if beyond and key == "seconds":
                    axis.plot(*zip(points[-1], *beyond, strict=True), ":", color=colour, linewidth=1.5)
                    axis.plot(*zip(*beyond, strict=True), "o", color=colour, markerfacecolor="white", markersize=5)
                    points += beyond
                ends.append((points[-1], mine[0]["label"] + (powers.get((system, kind), "") if key == "seconds" else ""), colour))
            named.append((axis, ends))
    for axis, kind in zip(axes[0], kinds, strict=True):
        axis.set_title(kinds[kind], fontsize=12, loc="left")
        for cross in crossings:
            if (cross["pass"], cross["system"], cross["than"], cross["kind"]) == (kind, "latent-encoding", "token-full", "from"):
                axis.axvline(cross["at"], color=_COST_COLOURS["latent-encoding"], linewidth=0.8, linestyle="--")
                tokens = float(f"{cross['at']:.2g}")
                words = f" latent + encoding cheaper than\n full attention from {tokens:,.0f} tokens"
                axis.text(cross["at"], 0.02, words, transform=axis.get_xaxis_transform(), fontsize=8, color="#555555")
    axes[0][0].set_ylabel("seconds")
    axes[1][0].set_ylabel("peak memory, MiB")
    for axis in axes[-1]:
        axis.set_xlabel("tokens of the document")
    figure.tight_layout()
    for axis, ends in named:
        _name_lines(axis, ends)
    return _save(figure, path)


def _name_lines(axis: Any, ends: Sequence[tuple[tuple[float, float], str, str]]) -> None:
    """Each line's name to the right of its end, moved up where another stands too near; the axes' limits must be final."""
    if not ends:
        return
    to_axes = axis.transData + axis.transAxes.inverted()
    right = max(to_axes.transform(point)[0] for point, *_ in ends)
    places = sorted((to_axes.transform(point)[1], point, label, colour) for point, label, colour in ends)
    heights: list[float] = []
    for wanted, *_ in places:
        heights.append(max(wanted, heights[-1] + 0.05) if heights else wanted)
    for height, (wanted, point, label, colour) in zip(heights, places, strict=True):
        away = height - wanted > 0.01 or right - to_axes.transform(point)[0] > 0.02
        line = {"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)} if away else None
        axis.annotate(
            label,
            point,
            xytext=(right + 0.03, height),
            textcoords="axes fraction",
            color=colour,
            fontsize=9.5,
            va="center",
            arrowprops=line,
        )


def _bars(
    rows: Sequence[dict[str, Any]],
    labels: Sequence[str],
    panels: Sequence[tuple[str, str]],
    path: Path,
    *,
    ours: str | tuple[str, ...],
    title: str,
) -> Path:
    plt = _pyplot()
    colours = [_OURS if (label in ours if isinstance(ours, tuple) else label == ours) else _CONTROL for label in labels]
    figure, axes = plt.subplots(1, len(panels), figsize=(2.2 + 2.1 * len(panels), 0.9 + 0.32 * len(rows)), sharey=True)
    for axis, (key, heading) in zip(axes, panels, strict=True):
        values = [float(row.get(key) or 0.0) for row in rows]
        errors = [_error(row, key) for row in rows]
        axis.barh(range(len(rows)), values, xerr=list(zip(*errors, strict=True)), color=colours, error_kw={"elinewidth": 1, "capsize": 2})
        axis.set_title(heading, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlim(left=min([0.0, *values]))
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def _error(row: dict[str, Any], key: str) -> tuple[float, float]:
    low, high = (row.get("intervals") or {}).get(key, (None, None))
    value = row.get(key)
    if value is None or low is None or high is None:
        return 0.0, 0.0
    return max(0.0, value - low), max(0.0, high - value)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    with atomic_write(path) as handle:
        figure.savefig(handle, format="png", dpi=130)
    _pyplot().close(figure)
    return path
