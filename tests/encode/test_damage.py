"""Nothing is lost and nothing silently wrong: damage is named, the same command mends it bitwise and encodes nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lsm.corpus.reader import Corpus
from lsm.corpus.standing import shard_states
from lsm.errors import UserError
from lsm.files import refusal
from lsm.text.readers import iter_documents

SHARD = "shards/00001"
OPTIONS = ("--encoder", "stub", "--shard-rows", 12, "--workers", 1, "--quiet")


def rows(first: int, stop: int) -> str:
    made = ({"id": f"d{i}", "text": "".join(f"Sentence {k} of document {i}. " for k in range(1 + i % 4))} for i in range(first, stop))
    return "".join(json.dumps(row) + "\n" for row in made)


def bytes_of(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*.*")}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def replaced(pattern: str, by: str) -> Callable[[Path], None]:
    def do(file: Path) -> None:
        text, n = re.subn(pattern, by, file.read_text(), count=1)
        assert n == 1
        file.write_text(text)

    return do


@pytest.fixture
def encode(run_cli: Callable, tmp_path: Path) -> Callable:
    """`encode(out, input)`: exit code, stderr and how many sentences were encoded."""

    def call(out: Path, source: Path, *more: object) -> tuple[int, str, int]:
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        outcome = run_cli("encode-corpus", source, "--out", out, *OPTIONS, "--json", report, *more)
        return outcome.code, outcome.stderr, json.loads(report.read_text())["results"]["n_sentences_written"] if not outcome.code else 0

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the input `a.jsonl`, its corpus `whole`, and `two-calls` of `a.jsonl` and then `b.jsonl`, unchanged by every test."""
    from lsm.cli import main

    folder = tmp_path_factory.mktemp("made")
    (folder / "a.jsonl").write_text(rows(0, 20))
    (folder / "b.jsonl").write_text(rows(20, 30))
    calls = (("a.jsonl", "whole", ()), ("a.jsonl", "two-calls", ()), ("b.jsonl", "two-calls", ("--append",)))
    for source, out, more in calls:
        words = ("encode-corpus", folder / source, "--out", folder / out, *OPTIONS, *more)
        assert main([str(word) for word in words]) == 0
    return folder


@pytest.mark.parametrize(
    ("file", "damage", "encoded"),
    [
        (f"{SHARD}/semantic.npy", flip, True),
        (f"{SHARD}/semantic.npy", cut, True),
        (f"{SHARD}/sentences.parquet", flip, True),
        (f"{SHARD}/sentences.parquet", Path.unlink, True),
        (f"{SHARD}/documents.parquet", flip, True),
        (f"{SHARD}/done.json", replaced('"n_tokens": ', '"n_tokens": 1'), True),
        (f"{SHARD}/done.json", replaced("{", "["), True),
        (SHARD, shutil.rmtree, True),
        ("documents.parquet", flip, False),
        ("documents.parquet", Path.unlink, False),
        ("manifest.json", replaced('"n_tokens": ', '"n_tokens": 1'), False),
        ("manifest.json", replaced('"semantic.npy": "..', '"semantic.npy": "zz'), False),
        ("manifest.json", replaced('"pooling": "sum"', '"pooling": "rum"'), False),
        ("manifest.json", replaced('"shards"', '"shardz"'), False),
        ("manifest.json", replaced("{", "["), False),
    ],
)
def test_damage_is_found_and_mended(made: Path, tmp_path: Path, run_cli, encode, file: str, damage, encoded: bool) -> None:
    folder = Path(shutil.copytree(made / "whole", tmp_path / "c"))
    damage(folder / file)
    outcome = run_cli("inspect", folder, "--verify", "--quiet")
    assert outcome.code == 2 and len(outcome.stderr.splitlines()) == 1
    assert ("00001" if encoded else file) in outcome.stderr or "shard 000" in outcome.stderr
    assert "run the encode-corpus command that made it again" in outcome.stderr
    code, stderr, n_written = encode(folder, made / "a.jsonl")
    assert (code, stderr) == (0, "")
    assert bytes_of(folder) == bytes_of(made / "whole")
    assert n_written == (shard_states(folder)[1].done["n_sentences"] if encoded else 0)


def test_every_broken_shard_is_named_and_only_those_are_encoded(made: Path, tmp_path: Path, run_cli, encode) -> None:
    folder = Path(shutil.copytree(made / "whole", tmp_path / "c"))
    for name in ("shards/00000/semantic.npy", "shards/00002/documents.parquet", "documents.parquet"):
        flip(folder / name)
    line = run_cli("inspect", folder, "--verify", "--quiet").stderr
    assert "shard 00000: semantic.npy" in line and "shard 00002: documents.parquet" in line and "00001" not in line
    kept = (folder / SHARD / "done.json").stat().st_ino
    assert encode(folder, made / "a.jsonl")[0] == 0
    assert bytes_of(folder) == bytes_of(made / "whole")
    assert (folder / SHARD / "done.json").stat().st_ino == kept


def test_a_marker_does_not_make_a_rotten_shard_pass_when_a_run_goes_on(made: Path, tmp_path: Path, run_cli, encode) -> None:
    folder = Path(shutil.copytree(made / "whole", tmp_path / "c"))
    (folder / "manifest.json").unlink()
    (folder / "documents.parquet").unlink()
    shutil.rmtree(folder / "shards" / "00003")
    flip(folder / SHARD / "sentences.parquet")
    outcome = run_cli("inspect", folder, "--verify", "--quiet")
    assert outcome.code == 2 and "unfinished" in outcome.stderr and "shard 00001: sentences.parquet differs" in outcome.stderr
    assert encode(folder, made / "a.jsonl")[0] == 0
    assert bytes_of(folder) == bytes_of(made / "whole")


def test_a_damaged_shard_is_not_made_from_another_input(made: Path, tmp_path: Path, encode) -> None:
    texts = rows(0, 20).splitlines(keepends=True)
    for number, lost in enumerate(("semantic.npy", "documents.parquet", "")):
        folder = Path(shutil.copytree(made / "whole", tmp_path / f"c{number}"))
        flip(folder / SHARD / lost) if lost else shutil.rmtree(folder / SHARD)
        inside = Corpus.open(made / "whole").shard_documents(1)["doc_id"].to_pylist()[1]
        (tmp_path / "a.jsonl").write_text(
            "".join(line.replace("Sentence 0", "Sentence X") if f'"{inside}"' in line else line for line in texts)
        )
        before = bytes_of(folder)
        code, stderr, _ = encode(folder, tmp_path / "a.jsonl")
        assert code == 2 and "differs from what shard 00001" in stderr and f"'{inside}'" in stderr
        assert bytes_of(folder) == before


def test_an_input_that_grew_before_the_end_is_refused(made: Path, tmp_path: Path, encode) -> None:
    folder = Path(shutil.copytree(made / "whole", tmp_path / "c"))
    (folder / "manifest.json").unlink()
    (tmp_path / "a.jsonl").write_text(rows(0, 20) + json.dumps({"id": "new", "text": "One more."}) + "\n")
    assert shard_states(folder)[-1].done["n_sentences"] < 12, "the last shard has room, or nothing is tried here"
    code, stderr, _ = encode(folder, tmp_path / "a.jsonl")
    assert code == 2 and "ended before document 'new'" in stderr
    assert encode(folder, made / "a.jsonl")[0] == 0 and bytes_of(folder) == bytes_of(made / "whole")
    assert encode(folder, tmp_path / "a.jsonl", "--append")[::2] == (0, 1)


def test_a_damaged_last_shard_hides_no_growth(made: Path, tmp_path: Path, encode) -> None:
    folder = Path(shutil.copytree(made / "whole", tmp_path / "c"))
    (folder / "manifest.json").unlink()
    flip(sorted((folder / "shards").iterdir())[-1] / "semantic.npy")
    (tmp_path / "a.jsonl").write_text(rows(0, 20) + json.dumps({"id": "new", "text": "One more."}) + "\n")
    code, stderr, _ = encode(folder, tmp_path / "a.jsonl")
    assert code == 2 and "ended before document 'new'" in stderr
    assert encode(folder, made / "a.jsonl")[0] == 0 and bytes_of(folder) == bytes_of(made / "whole")


def test_each_call_mends_its_own_shards(made: Path, tmp_path: Path, run_cli, encode) -> None:
    folder = Path(shutil.copytree(made / "two-calls", tmp_path / "c"))
    last = sorted((folder / "shards").iterdir())[-1]
    for shard in (folder / SHARD, last):
        flip(shard / "documents.parquet")
    assert "of a.jsonl; then of b.jsonl --append" in run_cli("inspect", folder, "--verify", "--quiet").stderr
    code, stderr, _ = encode(folder, made / "a.jsonl")
    assert code == 2 and f"b.jsonl (with --append) has lost 1 shards ({last.name})" in stderr
    assert encode(folder, made / "b.jsonl", "--append")[0] == 0
    assert bytes_of(folder) == bytes_of(made / "two-calls")


@pytest.mark.parametrize("damage", [replaced("{", "["), replaced("sentencex", "sdntencex"), Path.unlink])
def test_a_damaged_plan_is_refused(made: Path, tmp_path: Path, run_cli, encode, damage) -> None:
    folder = Path(shutil.copytree(made / "whole", tmp_path / "c"))
    damage(folder / "plan.json")
    before = bytes_of(folder)
    code, stderr, _ = encode(folder, made / "a.jsonl")
    assert code == 2 and "choose another --out" in stderr and bytes_of(folder) == before


def test_an_input_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(rows(0, 20))
    documents = iter_documents([str(source)])
    next(documents)
    with open(source, "a") as handle:
        handle.write(rows(20, 21))
    with pytest.raises(UserError, match=r"a\.jsonl changed while it was read"):
        list(documents)


def test_refusals_of_the_disk_have_lines() -> None:
    for number, words in ((27, "larger than the file system"), (5, "disk may be failing"), (28, "disk full")):
        assert words in (refusal(OSError(number, os.strerror(number)), "x") or "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_with_a_line_and_leave_a_corpus_to_go_on_with(tmp_path: Path, number: int, code: int) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "c"
    source.write_text(rows(0, 8_000))
    options = "--encoder stub-slow --shard-rows 200 --workers 1 --quiet"
    command = [sys.executable, "-m", "lsm", "encode-corpus", str(source), "--out", str(out), *options.split()]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is ignored, a child would ignore it too
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, handler)
    while not list(out.glob("shards/*/done.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert len(errors.splitlines()) == 1 and "what was finished is kept: resume with the same command" in errors
    assert not (out / ".lock").exists() and not list(out.rglob("*.partial"))
    assert all(state.done for state in shard_states(out))
