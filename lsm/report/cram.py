"""The scoreboard of `lsm cram`: tables for the terminal and Markdown, plots, and one page with the texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsm.files import atomic_write, write_json
from lsm.provenance import report
from lsm.report import tables
from lsm.report.html import Section, write_report
from lsm.report.plots import Panel, plot_curves
from lsm.report.tables import Column

CRAM = (
    Column("label", "memory", "text"),
    Column("kind", "texts", "text"),
    Column("n", "n", "count"),
    Column("tokens_exact", "tokens exact,\ngreedy", "number", interval=True),
    Column("tokens_teacher_forced", "teacher-\nforced", "number"),
    Column("overreach_accuracy", "shortest that failed:\nteacher-forced", "share"),
    Column("overreach_tokens", "its greedy\ntokens", "number"),
    Column("token_gain", "token\ngain", "number"),
    Column("information_nats", "nats\ngained", "number"),
    Column("cross_entropy", "nats a token\nwithout", "number"),
    Column("exact_int8", "exact\nint8", "share"),
    Column("exact_int6", "exact\nint6", "share"),
    Column("exact_int4", "exact\nint4", "share"),
    Column("bytes_int8", "bytes\nint8", "bytes"),
    Column("utf8_bytes", "UTF-8\nbytes", "bytes"),
    Column("zstd_bytes", "zstd\nbytes", "bytes"),
    Column("lm_entropy_bytes", "LM\nentropy", "bytes"),
    Column("code_tokens", "code of int8's\nbytes: tokens", "number"),
)
USE = (
    Column("context", "before the prompt", "text"),
    Column("n", "n", "count"),
    Column("crammed_whole", "crammed\nwhole", "count"),
    Column("answer_f1", "answer\ntoken F1", "share", interval=True),
    Column("answer_nats", "answer, nats\na token", "number", interval=True),
    Column("unrelated_kl", "unrelated:\nKL, nats a token", "number", interval=True),
    Column("unrelated_same", "same best\ntoken", "share"),
)
TEXTS = (
    Column("lm", "LM", "text"),
    Column("name", "text", "text"),
    Column("memory", "memory", "text"),
    Column("tokens_exact", "tokens exact,\ngreedy", "count"),
    Column("tokens_teacher_forced", "teacher-\nforced", "count"),
    Column("overreach_target", "shortest that failed", "count"),
    *CRAM[5:10],
    Column("tokens_int8", "tokens\nint8", "count"),
    Column("tokens_int6", "tokens\nint6", "count"),
    Column("tokens_int4", "tokens\nint4", "count"),
    *CRAM[13:],
    Column("steps", "steps", "count"),
)


def show_cram(results: dict[str, Any]) -> None:
    """Print the tables."""
    if results["rows"]:
        tables.show(results["rows"], _there(CRAM, results["rows"]), title=f"Crammed into memory vectors of {results['lm']['name']}")
    if results["usefulness"]:
        tables.show(results["usefulness"], USE, title="Questions about short texts, and unrelated sentences")


def write_cram(folder: Path, results: dict[str, Any], *, seed: int, device: str, elapsed_seconds: float) -> Path:
    """results.json, cram.md, cram.png and cram.html; the page's path."""
    write_json(folder / "results.json", report(results, seed=seed, device=device, elapsed_seconds=elapsed_seconds))
    columns = _there(CRAM, results["rows"])
    parts = [tables.markdown(results["rows"], columns)] if results["rows"] else []
    if results["usefulness"]:
        parts.append(tables.markdown(results["usefulness"], USE))
    with atomic_write(folder / "cram.md", "w") as handle:
        handle.write("\n\n".join(parts) + "\n")
    images = [plot_cram(results["texts"], folder / "cram.png")] if results["texts"] else []
    texts = [
        (f"{row['name']}, {row['vectors']} vectors, {row['form']}: {row['tokens_exact']} tokens", row["text"]) for row in results["texts"]
    ]
    by_text = text_rows(results["texts"])
    sections = [
        Section("Capacity", words="Means over texts; 95 % intervals from resampling texts.", rows=results["rows"], columns=columns),
        Section("Plots", images=images),
        Section("Is the vector of use?", rows=results["usefulness"], columns=USE),
        Section("Text by text", rows=by_text, columns=_there(TEXTS, by_text)),
        Section("What is held, word for word", texts=texts),
    ]
    return write_report(folder / "cram.html", f"Crammed into memory vectors of {results['lm']['name']}", sections)


def text_rows(texts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each text and way, with what stands nested in `texts` as columns."""
    rows = []
    for each in texts:
        bits = {f"tokens_int{way['bits']}": way["tokens_exact"] for way in each["quantised"]}
        bits |= {f"bytes_int{way['bits']}": way["bytes"] for way in each["quantised"]}
        code = {"code_tokens": each["code"]["tokens_certified"]} if each["code"] else {}
        rows.append(each | {"memory": _way(each)} | bits | code)
    return rows


def plot_cram(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Capacity against cross-entropy, capacity against the number of vectors, and accuracy trajectories of the first text of each way.

    Args:
        rows: of one LM or of several.
    """
    several = len({row["lm"] for row in rows}) > 1
    against_nats: dict[str, tuple[list[float], list[float]]] = {}
    capacities: dict[str, dict[int, list[int]]] = {}
    trajectories: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        kind = f"{row['lm']}, {row['kind']}" if several else row["kind"]
        label = f"{kind}, {_way(row)}"
        xs, ys = against_nats.setdefault(label, ([], []))
        xs.append(row["cross_entropy"])
        ys.append(row["tokens_exact"])
        group = kind + ", one pass" * (row["form"] == "one-pass")
        capacities.setdefault(group, {}).setdefault(row["vectors"], []).append(row["tokens_exact"])
        points = row["trajectory"]
        if points and label not in trajectories:
            trajectories[label] = ([step for step, _, _ in points], [tokens * accuracy for _, tokens, accuracy in points])
    by_vectors = {label: (sorted(each), [sum(each[n]) / len(each[n]) for n in sorted(each)]) for label, each in capacities.items()}
    panels = [
        Panel("Capacity and the text", "cross-entropy without a vector, nats a token", "tokens exact, greedy", against_nats, points=True),
        Panel("Capacity and vectors", "vectors", "tokens exact, greedy (mean)", by_vectors),
        Panel("First text of each way", "step", "tokens right, teacher-forced", trajectories, legend=False),
    ]
    return plot_curves(panels, path, title="What memory vectors hold, word for word")


def _way(row: dict[str, Any]) -> str:
    return f"{row['vectors']} vector{'s' * (row['vectors'] > 1)}" + (" one pass" if row["form"] == "one-pass" else "")


def _there(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> list[Column]:
    """Columns that some row has."""
    return [column for column in columns if any(column.key in row for row in rows)]
