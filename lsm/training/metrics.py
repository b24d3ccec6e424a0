"""The run's diary: metrics.jsonl (repeatable, no clock in it), tensorboard, and a plot of the loss."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lsm.files import atomic_write

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends to `metrics.jsonl` and tensorboard; on a resume from `start_step` everything later is cut off first.

    A row is `{"step", "loss", ...}` after a step and `{"step", "evaluation": {...}}` after an evaluation.
    """

    def __init__(self, out: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = out / METRICS
        kept = [row for row in read_metrics(out) if row["step"] <= start_step] if start_step else []
        with atomic_write(self._path, "w") as handle:
            handle.writelines(_line(row) for row in kept)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (held open for the whole run, closed by `close`)
        self._board = SummaryWriter(out / "tensorboard", purge_step=start_step + 1)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Log the scalars of one step or, under the key `evaluation`, those of one evaluation."""
        self._file.write(_line({"step": step} | row))
        for name, value in row.get("evaluation", row).items():
            self._board.add_scalar(f"{'evaluation' if 'evaluation' in row else 'train'}/{name}", value, step)

    def write_speed(self, step: int, row: dict[str, Any]) -> None:
        """Show throughput on tensorboard, which may have a clock in it."""
        for name, value in row.items():
            self._board.add_scalar(f"speed/{name}", value, step)

    def flush(self) -> None:
        """Bring everything to disk; to be called before a checkpoint that relies on it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()
        self._board.close()


class NoMetrics(MetricsLog):
    """The diary of a process that does not write."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Nothing."""

    def write_speed(self, step: int, row: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """All whole rows of a run's `metrics.jsonl`; a row cut short by a crash is dropped."""
    path = out / METRICS
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        rows.append(json.loads(line))
    return rows


def plot_loss(out: Path, title: str) -> Path:
    """Draw `loss.png` of a run: the training loss, its running mean, and the loss of the evaluations where they report one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(out)
    steps = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    evaluations = [(row["step"], row["evaluation"]["loss"]) for row in rows if "loss" in row.get("evaluation", {})]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if steps:
        axes.plot(*zip(*steps, strict=True), color="#9db8d2", linewidth=0.8, label="training")
        axes.plot([step for step, _ in steps], _smoothed([loss for _, loss in steps]), color="#1f4e79", label="training, running mean")
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), color="#c0504d", marker="o", markersize=3, label="held out")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path = out / "loss.png"
    with atomic_write(path) as handle:
        figure.savefig(handle, dpi=120, format="png")
    return path


def _smoothed(values: list[float], decay: float = 0.95) -> list[float]:
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        smooth.append(mean / weight)
    return smooth


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
