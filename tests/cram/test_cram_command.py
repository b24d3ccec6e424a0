"""`lsm cram` with the stub LM: the report, a run killed and gone on with, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TEXT = "When the committee met in the old town hall, nobody had thought of bringing a lamp, and so they talked in the dark. "


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for name in "ab":
        (folder / f"{name}.txt").write_text(f"{name}. " + TEXT * 12)
    return folder


def arguments(documents: Path, out: Path, *more: object) -> list[str]:
    return ["cram", str(documents), "--config", "cram-tiny", "--device", "cpu", "--out", str(out), *map(str, more)]


@pytest.fixture(scope="module")
def unbroken(documents, tmp_path_factory) -> Path:
    from lsm.cli import main

    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(arguments(documents, out, "--quiet")) == 0
    return out


def test_the_report_has_every_way_and_its_bytes(unbroken):
    results = json.loads((unbroken / "results.json").read_text())["results"]
    assert {(row["label"], row["kind"]) for row in results["rows"]} == {
        ("1 vector", "natural"), ("1 vector", "random"), ("2 vectors", "natural"), ("2 vectors", "random"),
        ("2 vectors, one pass", "natural"),
    }  # fmt: skip
    for row in results["texts"]:
        assert row["certified"] and row["tokens_teacher_forced"] >= row["tokens_exact"] == len(row["text"].encode())
        assert row["overreach_target"] is None or row["overreach_target"] > row["tokens_exact"] >= row["overreach_tokens"]
        assert [each["bits"] for each in row["quantised"]] == [8, 6, 4]
        assert all(each["tokens_exact"] <= row["tokens_exact"] for each in row["quantised"])
        assert row["form"] == "one-pass" or row["code"]["bytes"] <= row["quantised"][0]["bytes"]
    code = results["texts"][0]["code"]
    assert code["tokens_certified"] > 0 and code["utf8_bytes"] == code["tokens_certified"]
    contexts = [row["context"] for row in results["usefulness"]]
    assert contexts[:2] == ["no context", "the text itself"] and len(contexts) == 6
    assert results["usefulness"][0]["unrelated_kl"] == pytest.approx(0, abs=1e-5)
    assert {path.name for path in unbroken.iterdir()} >= {"cram.md", "cram.png", "cram.html", "plan.json"}


def test_a_killed_run_goes_on_to_the_bit(documents, unbroken, tmp_path, run_cli):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "lsm", *arguments(documents, out)], env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 600
    while not list(out.glob("vectors-2-0/*.safetensors")):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "results.json").exists()
    assert run_cli(*arguments(documents, out)).code == 0
    for path in unbroken.glob("*/*"):
        assert (out / path.relative_to(unbroken)).read_bytes() == path.read_bytes(), path.name
    mine, theirs = (json.loads((folder / "results.json").read_text())["results"] for folder in (out, unbroken))
    assert mine == theirs


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--vectors", "0"], "--vectors"),
        (["--vectors", "33"], "--vectors"),
        (["--bits", "9"], "--bits"),
        (["--questions", "9"], "--questions"),
        (["--kl-weights", "much"], "--kl-weights"),
        (["--texts", "3"], "--texts"),
        (["--growth.factor", "1"], "growth"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(documents, tmp_path, run_cli, more, words):
    outcome = run_cli(*arguments(documents, tmp_path / "run", *more))
    assert outcome.code == 2 and words in outcome.stderr and len(outcome.stderr.strip().splitlines()) == 1


def test_a_folder_of_another_run_is_refused(documents, unbroken, run_cli):
    outcome = run_cli(*arguments(documents, unbroken, "--seed", "1"))
    assert outcome.code == 2 and "another folder" in outcome.stderr
