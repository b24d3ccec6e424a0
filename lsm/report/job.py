"""The report of a main job's folder: whatever its verbs left there as JSON, plots and texts, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsm.files import read_json
from lsm.progress import duration
from lsm.report import tables
from lsm.report.html import Section, write_report

_CORPORA = {"encode-training": "training corpus", "encode-held-out": "held-out corpus"}
_EXAMPLES = 20


def write_job_report(folder: Path, *, title: str) -> Path:
    """Write `folder/report.html` from the verbs' JSON files in it; a missing one leaves its section out."""
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    reports = {name: value for name, value in found.items() if isinstance(value, dict) and "results" in value}
    sections = [
        *_corpora(reports),
        *_pretraining(folder, reports),
        *_next_sentence(folder, reports),
        *_continuations(folder, reports),
        *_roundtrip(folder, reports),
        _machine(reports),
    ]
    return write_report(folder / "report.html", title, sections)


def _corpora(reports: dict[str, Any]) -> list[Section]:
    facts = {}
    for name, what in _CORPORA.items():
        if name in reports:
            made = reports[name]["results"]
            facts[what] = f"{made['n_documents']:,} documents, {made['n_sentences']:,} sentences, {made['corpus_bytes'] / 2**20:,.1f} MiB"
    return [Section("Documents to sentence vectors", facts=facts)] if facts else []


def _pretraining(folder: Path, reports: dict[str, Any]) -> list[Section]:
    if "pretrain" not in reports:
        return []
    made = reports["pretrain"]["results"]
    facts = {
        "parameters": f"{made['parameters']:,}",
        "steps": f"{made['steps']:,}",
        "time": duration(reports["pretrain"]["elapsed_seconds"]),
    }
    return [Section("The latent transformer", facts=facts, images=_there(folder / "run" / "loss.png"))]


def _next_sentence(folder: Path, reports: dict[str, Any]) -> list[Section]:
    if "evaluate" not in reports:
        return []
    results = reports["evaluate"]["results"]
    words = (
        "Rank of the true next sentence among all held-out sentences, those already read and later pieces of split sentences left out. "
        "95 % intervals from resampling documents. " + " ".join(f"{note}." for note in results["notes"])
    )
    return [
        Section(
            "Next sentence",
            words=words,
            rows=results["rows"],
            columns=tables.NEXT_SENTENCE,
            images=_there(folder / "next-sentence.png"),
        ),
        Section("Paired differences", words="Positive: the model is better.", rows=results["differences"], columns=tables.DIFFERENCE),
    ]


def _continuations(folder: Path, reports: dict[str, Any]) -> list[Section]:
    texts = []
    for name, report in reports.items():
        if name.startswith("generate-"):
            results = report["results"]
            heading = f"{results['decoder']}: {results['n_prompt_sentences']} sentences read, {len(results['sentences'])} written"
            texts.append((heading, "\n".join(results["sentences"])))
    if not texts:
        return []
    speech = next(iter(sorted(folder.glob("speech-*.txt"))), None)
    beginning = [("what was read", speech.read_text(encoding="utf-8").rsplit("\n\n", 1)[0])] if speech else []
    return [Section("A held-out document continued", texts=[*beginning, *texts])]


def _roundtrip(folder: Path, reports: dict[str, Any]) -> list[Section]:
    if "roundtrip" not in reports:
        return []
    results = reports["roundtrip"]["results"]
    own = [row for row in results["by_length"] if row["vector"] == "own"]
    examples = [
        (f"sentence {number}", "\n".join(f"{label}: {text}" for label, text in row.items() if "," not in label))
        for number, row in enumerate(results["texts"][:_EXAMPLES], start=1)
    ]
    images = _there(folder / "roundtrip.png", folder / "roundtrip-by-length.png")
    return [
        Section("Round trip: text, vector, text", rows=results["rows"], columns=tables.ROUNDTRIP, images=images),
        Section("Round trip by length", rows=own, columns=tables.ROUNDTRIP_BY_LENGTH),
        Section("The first sentences of the round trip, not selected", texts=examples, facts=results["metrics"]),
    ]


def _machine(reports: dict[str, Any]) -> Section:
    facts: dict[str, Any] = {f"time of {name}": duration(report["elapsed_seconds"]) for name, report in reports.items()}
    if reports:
        any_report = next(iter(reports.values()))
        facts |= {"lsm": any_report["lsm_version"], "git": any_report["git"], "seed": any_report["seed"], "device": any_report["device"]}
        facts |= any_report["versions"]
    return Section("Where the numbers come from", facts=facts)


def _there(*paths: Path) -> list[Path]:
    return [path for path in paths if path.exists()]
