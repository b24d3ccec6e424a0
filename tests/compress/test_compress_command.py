"""`lsm compress`: a resumed run has an unbroken one's bytes, the scoreboard prints every row, a packed file is read back elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lsm.codes.soft_file import pack, unpack
from lsm.errors import UserError

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "compress-tiny.yaml"


@pytest.fixture(scope="module")
def run(question_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lsm.cli import main

    out = tmp_path_factory.mktemp("compress") / "run"
    assert main(["compress", "train", str(question_file), "--config", str(CONFIG), "--out", str(out), "--quiet"]) == 0
    return out


SPANS = ("--encoder.pooling", "kept", "--encoder.score-hidden", "4", "--encoder.layer", "2", "--objectives.spans-steps", "4")


@pytest.mark.parametrize("changes", [(), SPANS], ids=["pooled", "inside the steps that teach scores"])
def test_resumed_is_unbroken(
    changes: tuple[str, ...], question_file: Path, tmp_path: Path, run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lsm.training.loop import Trainer

    asked = ("compress", "train", question_file, "--config", CONFIG, "--quiet", *changes)
    unbroken, out, save = tmp_path / "unbroken", tmp_path / "run", Trainer._save
    assert run_cli(*asked, "--out", unbroken).code == 0

    def stop_after_saving(self: Trainer, step: int) -> None:
        save(self, step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save", stop_after_saving)
        assert run_cli(*asked, "--out", out).code == 130
    assert run_cli(*asked, "--out", out, "--resume", "must").code == 0
    assert (out / "final" / "model.safetensors").read_bytes() == (unbroken / "final" / "model.safetensors").read_bytes()


def test_scoreboard_prints_every_row(run: Path, other_file: Path, tmp_path: Path, run_cli) -> None:
    report = tmp_path / "eval.json"
    outcome = run_cli(
        "compress", "eval", run, other_file, "--questions", 4, "--ratio", 8, "--resamples", 20, "--sentence-encoder", "stub",
        "--beside", run, "--json", report, "--quiet",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    results = json.loads(report.read_text())["results"]
    labels = {row["label"] for row in results["rows"]}
    assert labels == {
        "full text", "replayed embeddings, raw", 'replayed embeddings, anchor "Answer: "', "replayed embeddings, untrained adapter",
        "no text", "full text, learned cue", "truncated, same tokens", "truncated, same bytes (int8)", "best sentences (sees the question)",
        "PCA, same vectors", "shuffled", "learned", "learned, int8", "learned, int6", "learned, int4", "truncated, learned cue",
    }  # fmt: skip
    by_label = {row["label"]: row for row in results["rows"]}
    assert by_label["full text"]["nll_kept"] == pytest.approx(1.0) and by_label["no text"]["nll_kept"] == pytest.approx(0.0)
    assert by_label["learned"]["positions"] == by_label["truncated, same tokens"]["positions"]
    assert [row["bits"] for row in results["bytes"]] == [8, 6, 4] and results["bytes"][0]["over_zstd"] > 1
    assert "learned − truncated, learned cue" in {row["compared"] for row in results["differences"]}
    assert len(results["joint"]) == 3 and "8x:" in outcome.stdout


def test_judged_in_the_precision_of_training(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from lsm.commands.compress_rows import load
    from lsm.lm.frozen import FrozenLM

    asked, original = [], FrozenLM.load

    def recorded(*names: str, **how: object) -> FrozenLM:
        asked.append(how.get("dtype"))
        return original(*names, **how)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(FrozenLM, "load", recorded)
    load(run, device="cpu")
    assert asked == [torch.float32]


def test_packed_texts_answer_without_the_texts(run: Path, question_file: Path, tmp_path: Path, run_cli) -> None:
    wire = tmp_path / "texts.lsmc"
    packed = run_cli("compress", "pack", run, question_file, "--out", wire, "--bits", 6)
    assert packed.code == 0 and f"{wire.stat().st_size:,} bytes" in packed.stdout
    asked = run_cli("compress", "ask", run, "--wire", wire, "--question", "Who?", "--json", tmp_path / "a.json")
    assert asked.code == 0 and len(json.loads((tmp_path / "a.json").read_text())["results"]["answers"]) == 8
    elsewhere = tmp_path / "elsewhere.lsmc"
    elsewhere.write_bytes(pack(replace(unpack(wire.read_bytes(), origin="wire"), lm_sha256="a" * 64)))
    foreign = run_cli("compress", "ask", run, "--wire", elsewhere, "--question", "Who?")
    assert foreign.code == 2 and "for an LM of sha256 aaaa" in foreign.stderr
    wire.write_bytes(wire.read_bytes()[:-9])
    broken = run_cli("compress", "ask", run, "--wire", wire, "--question", "Who?")
    assert broken.code == 2 and "damaged or cut short" in broken.stderr and broken.stderr.count("\n") == 1


def test_what_is_missing_is_named(run: Path, question_file: Path, tmp_path: Path, run_cli) -> None:
    assert "--out" in run_cli("compress", "train", question_file, "--config", CONFIG).stderr
    assert "name the run first" in run_cli("compress", "eval").stderr
    assert "holds no finished compressor" in run_cli("compress", "eval", tmp_path, question_file).stderr
    shutil.copytree(run / "final", tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text('{"format": "lsm compressor"}', encoding="utf-8")
    damaged = run_cli("compress", "pack", tmp_path / "damaged", question_file, "--out", tmp_path / "texts.lsmc")
    assert damaged.code == 2 and "KeyError: 'settings'" in damaged.stderr and damaged.stderr.count("\n") == 1
    rows = tmp_path / "bad.jsonl"
    rows.write_text('{"text": "a", "query": "b"}\n', encoding="utf-8")
    outcome = run_cli("compress", "train", rows, "--config", CONFIG, "--out", tmp_path / "x")
    assert outcome.code == 2 and "bad.jsonl:1: wants text, question and answers, found text, query" in outcome.stderr
    too_deep = run_cli("compress", "train", question_file, "--config", CONFIG, "--out", tmp_path / "y", "--encoder.layer", 3)
    assert too_deep.code == 2 and "encoder.layer" in too_deep.stderr
    states = ("--encoder.depths", "--encoder.states", 1, 3)
    too_deep = run_cli("compress", "train", question_file, "--config", CONFIG, "--out", tmp_path / "y", *states)
    assert too_deep.code == 2 and "must be at most 2" in too_deep.stderr


def test_what_was_trained_on_is_left_out(run: Path, question_file: Path, other_file: Path, tmp_path: Path, run_cli) -> None:
    few = ("--questions", 2, "--ratio", 8, "--resamples", 20, "--wire-bits", 4, "--sentence-encoder", "stub", "--quiet")
    refused = run_cli("compress", "eval", run, question_file, *few)
    assert refused.code == 2 and "all 16 questions" in refused.stderr and refused.stderr.count("\n") == 1
    of_one_article = tmp_path / "more.jsonl"  # new texts, but one of an article that training has read
    rows = [json.loads(line) for line in other_file.read_text(encoding="utf-8").splitlines()[:4]]
    rows[:2] = [row | {"title": "house 3"} for row in rows[:2]]
    of_one_article.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    outcome = run_cli("compress", "eval", run, of_one_article, question_file, *few, "--json", tmp_path / "e.json")
    assert outcome.code == 0, outcome.stderr
    results = json.loads((tmp_path / "e.json").read_text())["results"]
    assert results["n_seen_left_out"] == 18 and {row["n"] for row in results["rows"]} == {2}
    # One text is left: nothing to shuffle it with, so that row is absent and no verdict rests on it.
    assert "shuffled" not in {row["label"] for row in results["rows"]}
    assert not any("use:" in name for name in results["findings"][0]["collapsed"])


def test_nothing_left_to_ask_is_one_line(run: Path, tmp_path: Path, run_cli) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "long " * 200, "question": "Who?", "answers": ["x"]}) + "\n", encoding="utf-8")
    outcome = run_cli("compress", "eval", run, rows, "--sentence-encoder", "stub")
    assert outcome.code == 2 and "no question about a text of at most 600 tokens" in outcome.stderr
    rows.write_text(json.dumps({"text": "a", "question": "Who?", "answers": []}) + "\n", encoding="utf-8")
    assert "no question with an answer" in run_cli("compress", "eval", run, rows, "--sentence-encoder", "stub").stderr
    assert "no text to pack" in run_cli("compress", "pack", run, rows, "--out", tmp_path / "x").stderr


def test_finished_rows_are_those_of_the_same_reading(run: Path, other_file: Path, tmp_path: Path, run_cli, monkeypatch) -> None:
    command = ("compress", "eval", run, other_file, "--questions", 2, "--ratio", 8, "--resamples", 20, "--wire-bits", 4,
               "--sentence-encoder", "stub", "--out", tmp_path / "rows", "--quiet")  # fmt: skip
    assert run_cli(*command).code == 0
    n = len(list((tmp_path / "rows").iterdir()))
    assert run_cli(*command).code == 0 and len(list((tmp_path / "rows").iterdir())) == n
    monkeypatch.setattr("lsm.bench.compression.NEW_TOKENS", 4)
    assert run_cli(*command).code == 0 and len(list((tmp_path / "rows").iterdir())) == 2 * n


def test_rows_without_training_are_shared(run: Path, question_file: Path, other_file: Path, tmp_path: Path, run_cli) -> None:
    longer, rows = tmp_path / "longer", tmp_path / "rows"
    assert run_cli("compress", "train", question_file, "--config", CONFIG, "--out", longer, "--quiet", "--steps", 7).code == 0
    found: list[set[str]] = []
    for one in (run, longer):
        few = ("--questions", 2, "--ratio", 8, "--resamples", 20, "--wire-bits", 4, "--sentence-encoder", "stub")
        assert run_cli("compress", "eval", one, other_file, *few, "--out", rows, "--quiet").code == 0
        found.append({path.name for path in rows.iterdir()})
    new = sorted(json.loads((rows / name).read_text())["label"] for name in found[1] - found[0])
    assert new == ["full text, learned cue", "learned", "learned, int4", "shuffled", "truncated, learned cue"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eval", "RUN", "q.jsonl", "--group", 0), "--group 0: must be at least 1"),
        (("pack", "RUN", "q.jsonl", "--out", "x", "--group", 65536), "--group 65536: must be at most 65535"),
        (("eval", "RUN", "q.jsonl", "--ratio", 0), "--ratio 0: must be at least 1"),
        (("eval", "RUN", "q.jsonl", "--questions", 0), "--questions 0: must be at least 1"),
        (("eval", "RUN", "q.jsonl", "--resamples", 0), "--resamples 0: must be at least 1"),
        (("eval", "RUN", "q.jsonl", "--bits", 4), "--bits is no option of lsm compress eval"),
        (("pack", "RUN", "q.jsonl", "--out", "x", "--wire-bits", 4), "--wire-bits is no option of lsm compress pack"),
        (("train", "q.jsonl", "--out", "x", "--questions", 3), "--questions is no option of lsm compress train"),
        (("ask", "RUN", "--wire", "x", "--question", "Who?", "--out", "y"), "--out is no option of lsm compress ask"),
        (("ask", "RUN", "q.jsonl", "--wire", "x", "--question", "Who?"), "and no files with questions"),
        (
            ("train", "q.jsonl", "--out", "x", "--encoder.pooling", "mean", "--encoder.score-hidden", 4),
            "encoder.score_hidden needs encoder.poo",
        ),
        (("train", "q.jsonl", "--out", "x", "--encoder.score-reach", 1), "encoder.score_reach needs encoder.score_hidden"),
        (("eval", "RUN", "q.jsonl", "--lm", "stub"), "settings of the training are no options of lsm compress eval"),
        (("eval", "RUN"), "name files with questions"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_one_line(words: tuple, said: str, run_cli) -> None:
    outcome = run_cli("compress", *words)
    assert outcome.code == 2 and said in outcome.stderr and outcome.stderr.count("\n") == 1


@pytest.mark.slow
def test_gpu_recipe_runs_dry(question_file: Path, other_file: Path, tmp_path: Path) -> None:
    script = CONFIG.parents[1] / "scripts" / "train_compress.sh"
    (tmp_path / "lsm").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lsm "$@"\n', encoding="utf-8")
    (tmp_path / "lsm").chmod(0o755)
    environment = os.environ | {"DRY_RUN": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(CONFIG.parents[1])}
    done = subprocess.run(["bash", script, tmp_path / "out", other_file, question_file], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "out" / "1-stub.json").read_text())["results"]["joint"]) == 3


def test_sweep_of_collapse(question_file: Path, other_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specification = importlib.util.spec_from_file_location("compress_collapse", CONFIG.parents[1] / "scripts" / "compress_collapse.py")
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "compress_collapse", script)
    specification.loader.exec_module(script)
    files, others = (str(question_file),), (str(other_file),)
    runs = ("bytes, first answer token", "own words, whole answer, distilled")
    script.main(script.Options(train=files, judge=others, out=tmp_path / "sweep", lm="stub", steps=1, questions=4, runs=runs))
    rows = json.loads((tmp_path / "sweep" / "collapse.json").read_text())["results"]["rows"]
    assert [row["run"] for row in rows] == list(runs)
    assert all(row["nll"] > 0 and "collapsed" in row for row in rows)
    with pytest.raises(UserError, match="has not read"):
        script.main(script.Options(train=files, judge=files, out=tmp_path / "sweep", lm="stub", steps=1, questions=4, runs=runs[:1]))
