"""The scripts of plan-then-write on the toy workshop: every system writes and is measured, done work is kept, the page is whole."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
SYSTEMS = "real,plan,plan+denoiser,plan+neighbours+re-encode,plan+words+context,retrieval,lm-greedy,lm-sampled"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    module.main()


def test_long_documents_of_every_system(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, out = load("bench_long_documents"), tmp_path / "long"
    arguments = [
        workshop / "run", workshop / "docs", "--index", workshop / "store", "--adapter", workshop / "adapter", "--out", out, "--threads", 1,
        "--documents", 2, "--read", 4, "--sentences", 3, "--judge", "stub", "--lm-tokens", 32, "--resamples", 20,
    ]  # fmt: skip
    call(script, monkeypatch, *arguments, "--systems", "real,retrieval")
    first = {path: path.stat().st_mtime_ns for path in out.glob("written/*/*.json")}
    assert len(first) == 4
    call(script, monkeypatch, *arguments, "--systems", SYSTEMS)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items()), "what is done is kept"
    results = json.loads((out / "results.json").read_text())["results"]
    rows = {row["system"]: row for row in results["rows"]}
    assert list(rows) == SYSTEMS.split(",") and results["judge"]["is_the_writing_lm"]
    assert rows["real"]["n_sentences"] == 6 and "plan_cosine" not in rows["real"] and rows["real"]["nats_per_token"] > 0
    assert rows["retrieval"]["said_before"] == 0 and rows["plan+denoiser"]["plan_cosine"] is not None
    real = [row for row in results["drift"] if row["system"] == "real"]
    assert real and all(row["cosine_truth"] == pytest.approx(1, abs=1e-5) for row in real)
    assert "It is the LM that writes" in (out / "report.md").read_text()
    assert (out / "texts.md").read_text().count("## lm-greedy") == 2
    with pytest.raises(script.UserError, match="texts of other settings"):
        call(script, monkeypatch, *arguments[:-2], "--seed", 7)


def test_the_demo_makes_a_page(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    call(
        load("demo_long_document"), monkeypatch, workshop / "run", "--prompt", workshop / "docs" / "03.txt", "--index", workshop / "store",
        "--adapter", workshop / "adapter", "--sentences", 12, "--threads", 1, "--out", page,
    )  # fmt: skip
    text = page.read_text()
    assert text.count('class="line"') >= 1 and text.count("data:image/png;base64,") == 2 and "http" not in text


def test_bench_decode_compares_the_same_texts(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "decode.json"
    call(
        load("bench_decode"), monkeypatch, workshop / "run", "--corpus", workshop / "corpus", "--index", workshop / "store", "--adapter",
        workshop / "adapter", "--n", 5, "--read", 4, "--max-new-tokens", 12, "--batch-sizes", 2, 5, "--rows", 3, "--out", out,
    )  # fmt: skip
    results = json.loads(out.read_text())["results"]
    assert [row["same_texts"] for row in results["rows"]] == [5, 5, 5] and results["times_faster_cpu"] > 0
