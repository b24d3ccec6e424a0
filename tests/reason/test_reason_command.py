"""`lsm reason` from the shell: train, eval, generate, interpolate, map in seconds, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lsm.cli import main


@pytest.fixture(scope="module")
def runs(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mlp` and `identity`."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("mlp", "identity"):
        command = ["reason", "train", rows, "--config", "reason-tiny", "--out", folder / kind, "--stack.middle.kind", kind]
        assert main([*map(str, command), "--steps", "4", "--eval-every", "4", "--quiet"]) == 0
    return folder


def test_eval_prints_and_writes_all_rows(runs: Path, rows: Path, run_cli: Callable, tmp_path: Path) -> None:
    held = rows.with_name("held.jsonl")
    outcome = run_cli(
        "reason", "eval", runs / "mlp", held, "--beside", runs / "identity", "--full-text", 2, "--max-new-tokens", 8,
        "--resamples", 50, "--out", tmp_path / "eval", "--json", tmp_path / "eval.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    labels = [row["label"] for row in results["rows"]]
    assert labels == [
        "learned", "shuffled vector", "zero vector", "LM, no prefix", "first 1 turns", "LM reads the text", "identity middle",
    ]  # fmt: skip
    assert results["n"] == 10 and results["n_seen_left_out"] == 1 and "1 more were left out" in outcome.stderr
    by = {row["label"]: row for row in results["rows"]}
    assert by["LM reads the text"]["n"] == 2 and by["zero vector"]["unique"] == 1 and by["first 1 turns"]["nats_per_token"] is None \
        if "nats_per_token" in by["first 1 turns"] else True  # fmt: skip
    assert by["learned"]["bytes"] == 128 and by["learned"]["nats_per_token"] > 0
    texts = [json.loads(line) for line in (tmp_path / "eval/texts.jsonl").read_text().splitlines()]
    assert len(texts) == 10 and set(labels) <= {*texts[0]} and texts[0]["references"][1] == "Gone."
    assert sorted(text["shuffled vector"] for text in texts) == sorted(text["learned"] for text in texts)
    for label in labels:
        assert label in outcome.stdout and label in (tmp_path / "eval/table.md").read_text()
    assert "COLLAPSE" in outcome.stdout or "no collapse" in outcome.stdout


def test_generate_interpolate_and_map(runs: Path, rows: Path, run_cli: Callable, tmp_path: Path) -> None:
    short = ("--max-new-tokens", 6)
    one = run_cli("reason", "generate", runs / "mlp", "--text", "A: A fox?", *short, "--json", tmp_path / "g.json")
    assert one.code == 0, one.stderr
    (text,) = json.loads((tmp_path / "g.json").read_text())["results"]["texts"]
    (tmp_path / "a.txt").write_text("A: A fox?")
    line = run_cli(
        "reason", "interpolate", runs / "mlp", tmp_path / "a.txt", "B: The sea!", "--points", 3, *short, "--json", tmp_path / "i.json"
    )
    assert line.code == 0, line.stderr
    points = json.loads((tmp_path / "i.json").read_text())["results"]["rows"]
    assert [point["share"] for point in points] == [0, 0.5, 1] and points[0]["text"] == text
    drawn = run_cli("reason", "map", runs / "mlp", rows, "--clusters", 3, "--out", tmp_path / "map", *short)
    assert drawn.code == 0, drawn.stderr
    found = json.loads((tmp_path / "map/map.json").read_text())
    assert (tmp_path / "map/map.png").read_bytes().startswith(b"\x89PNG")
    assert len(found["points"]) == found["n"] == 20 and sum(cluster["size"] for cluster in found["clusters"]) == 20
    assert -1 <= found["spearman_encoder_ideas"] <= 1 and found["cosine_idea_thought"] <= 1 and "Spearman" in drawn.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "RUN"), "write: lsm reason eval RUN INPUT..."),
        (("train", "ROWS"), "write: lsm reason train INPUT... --out RUN"),
        (("generate", "RUN"), "write: lsm reason generate"),
        (("interpolate", "RUN", "a", "b", "c"), "write: lsm reason interpolate RUN A B"),
        (("eval", "RUN", "ROWS", "--points", "3"), "--points is no option of lsm reason eval"),
        (("generate", "RUN", "--text", "a", "--steps", "300"), "settings of the training are no options of lsm reason generate"),
        (("eval", "RUN", "ROWS", "--beside", "RUN"), "its middle is mlp"),
        (("eval", "RUN", "ROWS"), "0 inputs, and 20 more that training has read"),
        (("interpolate", "RUN", "a", "b", "--points", "1"), "--points 1: must be at least 2"),
        (("map", "RUN", "ROWS", "--out", "MAP", "--clusters", "30"), "a map wants 30 inputs"),
        (("generate", "RUN", "--text", "a", "--load-in", "4bit", "--device", "cpu"), "4-bit weights want a CUDA device"),
        (("train", "ROWS", "--out", "NEW", "--config", "reason-tiny", "--data.target", "title"), "set --data.inputs and --data.target"),
        (("train", "ROWS", "--out", "NEW", "--config", "reason-tiny", "--encoder", "wordllama"), "gives no token states"),
    ],
)
def test_faults_are_one_line_and_exit_2(
    arguments: tuple[str, ...], words: str, runs: Path, rows: Path, run_cli: Callable, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "wordllama" in arguments:
        request.applymarker(pytest.mark.real)
        from lsm.assets import resolve
        from lsm.errors import UserError

        try:
            resolve("wordllama")
        except UserError:
            pytest.skip("wordllama is not cached")
    places = {"RUN": runs / "mlp", "ROWS": rows, "NEW": tmp_path / "new", "MAP": tmp_path / "map"}
    outcome = run_cli("reason", *(str(places.get(argument, argument)) for argument in arguments))
    assert outcome.code == 2 and words in outcome.stderr and len(outcome.stderr.strip().splitlines()) <= 2, outcome
