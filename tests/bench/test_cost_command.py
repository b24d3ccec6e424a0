"""`lsm bench cost` on made-up text with the stub encoder: its rows, going on after a stop, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lsm.bench import cost
from lsm.bench.cost_cell import Job, perform
from lsm.bench.cost_settings import CostSettings
from lsm.config import load_settings
from lsm.latent.settings import PretrainSettings

TINY = (
    "--encoder",
    "stub",
    "--tokenizer",
    "stub",
    "--hidden",
    16,
    "--layers",
    1,
    "--heads",
    2,
    "--window",
    64,
    "--repeats",
    2,
    "--device",
    "cpu",
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"The people of state {number} keep the peace." for number in range(60)))
    return path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells are measured in this process, which is quicker; the list names them."""
    names: list[str] = []

    def here(module: str, path: Path, *, threads: int, timeout_seconds: float) -> None:
        job = Job.load(path)
        names.append(f"{job.system} {'training' if job.training else 'forward'} {job.length}")
        perform(job)

    monkeypatch.setattr(cost, "run_apart", here)
    return names


def results(path: Path) -> Any:
    return json.loads(path.read_text())["results"]


def test_every_system_and_pass(run_cli: Callable, tmp_path: Path, text: Path, adapter_folder: Path, measured: list[str]) -> None:
    out, where = tmp_path / "cost", tmp_path / "cost.json"
    outcome = run_cli(
        "bench",
        "cost",
        text,
        "--out",
        out,
        *TINY,
        "--tokens",
        "200,800",
        "--adapter",
        adapter_folder,
        "--decode-sentences",
        2,
        "--json",
        where,
    )
    assert outcome.code == 0, outcome.stderr
    rows = results(where)["rows"]
    assert len(measured) == len(rows) == 2 * 9
    by_key = {(row["system"], row["pass"], row["length"]): row for row in rows}
    assert ("latent-encoding-decoding", "training", 800) not in by_key, "a training step words nothing"
    for row in rows:
        assert row["tokens"] <= row["length"] and row["sentences"] in (5, 20) and row["seconds"] > 0 and row["gflop"] > 0
        low, high = row["intervals"]["seconds"]
        assert low <= row["seconds"] <= high and row["repeats"] == 2
    full, window = (by_key[name, "forward", 800] for name in ("token-full", "token-window"))
    assert full["gflop"] > window["gflop"] > by_key["latent", "forward", 800]["gflop"]
    whole = by_key["latent-encoding-decoding", "forward", 800]
    assert set(whole["parts"]) == {"encoding", "latent", "decoding"} and "scaled from 2 sentences" in whole["note"]
    assert whole["gflop"] > by_key["latent-encoding", "forward", 800]["gflop"]
    assert set(by_key["token-full", "training", 800]["parts"]) == {"blocks", "output layer"}
    assert len(results(where)["slopes"]) == 9 and len(results(where)["crossings"]) == 2 * 3 + 2 * 2
    assert all(found["sentence"] in outcome.stdout for found in results(where)["crossings"])
    assert (out / "cost.png").read_bytes().startswith(b"\x89PNG") and "| latent alone |" in (out / "cost.md").read_text()
    assert len((out / "cost.csv").read_text().splitlines()) == 1 + len(rows)
    assert results(out / "results.json")["rows"] == rows


def test_goes_on_where_it_stopped(run_cli: Callable, tmp_path: Path, text: Path, measured: list[str]) -> None:
    command = ("bench", "cost", text, "--out", tmp_path / "cost", *TINY, "--systems", "token-full,latent", "--decoder", "none", "--quiet")
    assert run_cli(*command, "--tokens", "200").code == 0
    cells = {path: path.read_bytes() for path in (tmp_path / "cost" / "cells").iterdir()}
    assert len(cells) == len(measured) == 4
    (gone := tmp_path / "cost" / "cells" / "latent-forward-200.json").unlink()
    measured.clear()
    assert run_cli(*command, "--tokens", "200,800").code == 0
    assert measured == [
        "latent forward 200",
        *(f"{system} {kind} 800" for system in ("token-full", "latent") for kind in ("forward", "training")),
    ]
    assert all(path.read_bytes() == cells[path] for path in cells if path != gone)
    outcome = run_cli(*command, "--tokens", "200,800", "--hidden", 32)
    assert outcome.code == 2 and "was measured otherwise (hidden 16 → 32)" in outcome.stderr


def test_what_would_take_too_long_is_left_out_and_said_so(run_cli: Callable, tmp_path: Path, text: Path, measured: list[str]) -> None:
    where = tmp_path / "cost.json"
    command = (
        "bench",
        "cost",
        text,
        "--out",
        tmp_path / "cost",
        *TINY,
        "--systems",
        "token-full,latent",
        "--decoder",
        "none",
        "--json",
        where,
    )
    outcome = run_cli(*command, "--tokens", "200,400,800", "--limit-seconds", 1e-6)
    assert outcome.code == 0, outcome.stderr
    rows = results(where)["rows"]
    assert {name.split()[-1] for name in measured} == {"200"}, "the shortest has nothing to be predicted from"
    for row in rows:
        left_out = row["length"] > 200
        assert (row["seconds"] is None) == left_out == bool(row["note"].startswith("not run")) == ("extrapolated_seconds" in row), row
    assert not results(where)["slopes"] and not results(where)["crossings"], "nothing is concluded from what was not measured"
    measured.clear()
    assert run_cli(*command, "--tokens", "200,400,800").code == 0 and len(measured) == 8


def test_a_cell_in_its_own_process(run_cli: Callable, tmp_path: Path, text: Path) -> None:
    where = tmp_path / "cost.json"
    outcome = run_cli(
        "bench",
        "cost",
        text,
        "--out",
        tmp_path / "cost",
        *TINY,
        "--tokens",
        "200",
        "--systems",
        "latent",
        "--decoder",
        "none",
        "--json",
        where,
    )
    assert outcome.code == 0, outcome.stderr
    forward, training = results(where)["rows"]
    assert forward["seconds"] > 0 and 0 < training["peak_mebibytes"] < 2000
    assert not (tmp_path / "cost" / "job.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tokens", "0"), "--tokens 0: each length must be at least 2"),
        (("--tokens", "many"), "--tokens many"),
        (("--tokens", "9000"), "--tokens 9000: INPUT holds only"),
        (("--tokens", "40"), "--tokens 40: the first two sentences"),
        (("--repeats", "0"), "--repeats 0"),
        (("--limit-seconds", "0"), "--limit-seconds 0"),
        (("--hidden", "30"), "--hidden 30: must be a multiple"),
        (("--window", "0"), "--window 0"),
        (("--systems", "latent,mamba"), "--systems mamba"),
        (("--encoder", "nosuch"), "nosuch"),
        (("--decoder", "prefix"), "no shipped adapter"),
    ],
)
def test_refusals(run_cli: Callable, tmp_path: Path, text: Path, options: tuple[str, ...], words: str) -> None:
    outcome = run_cli("bench", "cost", text, "--out", tmp_path / "cost", *TINY, "--tokens", "200", "--decoder", "none", *options)
    assert outcome.code == 2 and words in outcome.stderr and outcome.stderr.count("\n") == 1, outcome.stderr
    assert not (tmp_path / "cost").exists()


def test_other_inputs_and_benchmarks_are_refused(run_cli: Callable, tmp_path: Path, text: Path) -> None:
    missing = run_cli("bench", "cost", tmp_path / "nosuch.txt", "--out", tmp_path / "cost", *TINY, "--decoder", "none")
    assert missing.code == 2 and "nosuch.txt does not exist" in missing.stderr
    other = run_cli("bench", "speed", text, "--out", tmp_path / "cost")
    assert other.code == 2 and "invalid choice 'speed'" in other.stderr


def test_default_sizes_are_those_of_the_base_config() -> None:
    config = Path(__file__).resolve().parents[2] / "configs" / "latent-base.yaml"
    base, bench = load_settings(PretrainSettings, config).model, CostSettings()
    assert (bench.hidden, bench.layers, bench.heads, bench.anchor) == (base.hidden, base.layers, base.heads, base.anchor)
