"""The encoding run keeps its promises: many workers = one, resumed = unbroken, append never re-encodes, another input is refused."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lsm.corpus.reader import Corpus
from lsm.encode.encoder import encoder_info, load_encoder
from lsm.encode.plan import RunPlan, Stage
from lsm.encode.run import EncodeJob, encode_corpus
from lsm.encode.settings import EncodeSettings
from lsm.errors import UserError
from lsm.lock import only_writer


@dataclass
class Text:
    doc_id: str
    text: str
    source: str = "test"
    title: str = ""


def lines(text: str) -> tuple[str, list]:
    """A segmenter of lines: enough for the run, which takes any."""
    sentences, at = [], 0
    lead = text[: len(text) - len(text.lstrip())]
    at = len(lead)
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        stop = end
        while stop < len(text) and text[stop] == "\n":
            stop += 1
        sentences.append(SimpleNamespace(text=text[at:end], char_start=at, char_end=end, gap=text[end:stop], section=0, part=0))
        at = stop
    return lead, sentences


def documents(n: int, first: int = 0) -> list[Text]:
    generator = np.random.default_rng(first)
    return [
        Text(f"d{i}", "\n" + "\n".join(f"Line {k} of document {i}, {generator.integers(10**9)}." for k in range(1 + i % 7)) + "\n\n")
        for i in range(first, first + n)
    ]


def encode(out: Path, texts: Sequence[Text], *, encoder: str = "stub", shard_rows: int = 20, name: str = "a", **options: object) -> dict:
    info = encoder_info(encoder)
    plan = RunPlan.of(info.fingerprint, EncodeSettings(shard_rows=shard_rows))
    job = EncodeJob(out=out, info=info, plan=plan, stage=Stage([name], None, 0), segment=lines, quiet=True, **{"workers": 1, **options})  # type: ignore[arg-type]
    return encode_corpus(job, texts)


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()
    }


def test_vectors_texts_and_counts(tmp_path: Path) -> None:
    texts = documents(40)
    results = encode(tmp_path / "c", texts)
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.n_documents == results["n_documents"] == 40 and corpus.n_shards > 3
    encoder = load_encoder("stub")
    for number in (0, 6, 39):
        assert corpus.document_text(number) == texts[number].text
        expected = encoder.encode(corpus.texts(number)).vectors.astype(np.float16)
        np.testing.assert_array_equal(corpus.vectors(number), expected)
    shards = corpus.documents["shard"].to_numpy()
    assert (np.diff(shards) >= 0).all() and max(shard["n_sentences"] for shard in corpus.manifest["shards"]) <= 20
    assert not list((tmp_path / "c").glob(".lock"))


def test_stages_add_up(tmp_path: Path) -> None:
    found = encode(tmp_path / "corpus", documents(40), workers=2)
    stages = found["stage_seconds"]
    assert 0 < stages["read"] + stages["split"] + stages["write"] + stages["wait"] <= stages["wall"] + 0.01
    assert 0 < stages["encode"] <= 2 * stages["wall"] + 0.01 and found["stages"].endswith("sets the pace")
    again = encode(tmp_path / "corpus", documents(40), workers=2)
    assert again["stages"] is None and again["stage_seconds"]["encode"] == 0


def test_many_workers_equal_one(tmp_path: Path) -> None:
    texts = documents(60)
    encode(tmp_path / "one", texts, workers=1)
    encode(tmp_path / "two", texts, workers=2)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_repeat_changes_nothing(tmp_path: Path) -> None:
    encode(tmp_path / "c", documents(20))
    before = bytes_of(tmp_path / "c")
    assert encode(tmp_path / "c", documents(20))["n_sentences_written"] == 0
    assert bytes_of(tmp_path / "c") == before


def test_lost_shard_is_made_again(tmp_path: Path) -> None:
    encode(tmp_path / "c", documents(30))
    before = bytes_of(tmp_path / "c")
    for file in (tmp_path / "c" / "shards" / "00001").iterdir():
        file.unlink()
    (tmp_path / "c" / "manifest.json").unlink()
    (tmp_path / "c" / "shards" / "00004.partial").mkdir()
    encode(tmp_path / "c", documents(30))
    assert bytes_of(tmp_path / "c") == before


def test_append_adds_only_what_is_new(tmp_path: Path) -> None:
    encode(tmp_path / "c", documents(20))
    shards = {name: sha for name, sha in bytes_of(tmp_path / "c").items() if name.startswith("shards/")}
    results = encode(tmp_path / "c", documents(25), name="b", append=True)
    assert results["n_documents"] == 25 and results["n_documents_present_before"] == 20
    after = bytes_of(tmp_path / "c")
    assert {name: after[name] for name in shards} == shards
    corpus = Corpus.open(tmp_path / "c")
    assert [corpus.document_text(i) for i in range(25)] == [text.text for text in (*documents(20), *documents(25)[20:])]
    assert encode(tmp_path / "c", documents(25), name="b", append=True)["n_sentences_written"] == 0
    assert encode(tmp_path / "c", documents(20))["n_sentences_written"] == 0
    assert bytes_of(tmp_path / "c") == after


def test_interrupted_append_is_resumed(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        encode(tmp_path / name, documents(20))
    manifest = (tmp_path / "broken" / "manifest.json").read_bytes()
    table = (tmp_path / "broken" / "documents.parquet").read_bytes()
    for name in ("whole", "broken"):
        encode(tmp_path / name, documents(40, 20), name="b", append=True)
    (tmp_path / "broken" / "manifest.json").write_bytes(manifest)
    (tmp_path / "broken" / "documents.parquet").write_bytes(table)
    last = sorted((tmp_path / "broken" / "shards").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="unfinished"):
        encode(tmp_path / "broken", documents(3, 100), name="c", append=True)
    encode(tmp_path / "broken", documents(40, 20), name="b", append=True)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "broken")


def test_other_text_under_one_id_is_refused(tmp_path: Path) -> None:
    encode(tmp_path / "c", documents(5))
    with pytest.raises(UserError, match=r"'d2' is in .* already, with other text"):
        encode(tmp_path / "c", [Text("d2", "Another text.")], append=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda texts: [Text("d0", "Changed."), *texts[1:]], "differs from what shard 00000"),
        (lambda texts: texts[:-1], "it ends before document"),
        (lambda texts: [*texts, Text("new", "One more.")], "further documents"),
    ],
)
def test_changed_input_is_refused(tmp_path: Path, change, message: str) -> None:
    encode(tmp_path / "c", documents(20))
    with pytest.raises(UserError, match=message):
        encode(tmp_path / "c", change(documents(20)))


def test_other_settings_are_refused_with_both_fingerprints(tmp_path: Path) -> None:
    encode(tmp_path / "c", documents(5))
    with pytest.raises(UserError, match=r"other settings \[[0-9a-f]{16}\] than now \[[0-9a-f]{16}\]: shard_rows: 20 there, 21 now"):
        encode(tmp_path / "c", documents(5), shard_rows=21)


def test_resume_never_and_must(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--resume must"):
        encode(tmp_path / "c", documents(5), resume="must")
    encode(tmp_path / "c", documents(5), resume="never")
    with pytest.raises(UserError, match="--resume never"):
        encode(tmp_path / "c", documents(5), resume="never")
    encode(tmp_path / "c", documents(5), resume="must")


def test_foreign_folder_file_and_second_writer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="neither empty nor a corpus"):
        encode(tmp_path, documents(2))
    with pytest.raises(UserError, match="is a file"):
        encode(tmp_path / "thesis.txt", documents(2))
    with only_writer(tmp_path / "c"), pytest.raises(UserError, match="another process"):
        encode(tmp_path / "c", documents(2))


def test_blank_documents_are_counted_and_surrogates_mended(tmp_path: Path) -> None:
    results = encode(tmp_path / "c", [Text("a", " \n"), Text("b", "Broken \ud800 escape."), Text("c", "Fine.")])
    assert (results["n_documents"], results["n_blank_documents"], results["n_documents_mended"]) == (2, 1, 1)
    assert Corpus.open(tmp_path / "c").document_text(0) == "Broken \ufffd escape."
    with pytest.raises(UserError, match="no text"):
        encode(tmp_path / "d", [Text("a", "  ")])


_CHILD = """
import sys
if __name__ == "__main__":  # a worker imports this file too, and should not load pytest
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from test_encode_run import documents, encode
    encode(Path(sys.argv[1]), documents(150), encoder="stub-slow", workers=2)
"""


def test_killed_at_any_moment_then_resumed_is_byte_identical(tmp_path: Path) -> None:
    encode(tmp_path / "unbroken", documents(150), encoder="stub-slow", workers=2)
    command = _child(tmp_path)
    kills = 0
    for wanted in (1, 10, 20):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "broken" / "shards").glob("*/done.json"))) < wanted:
            time.sleep(0.005)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills, "the run was over before it could be killed"
    encode(tmp_path / "broken", documents(150), encoder="stub-slow", workers=1)
    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "unbroken")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    process = subprocess.Popen(_child(tmp_path), stderr=subprocess.DEVNULL)
    while not list((tmp_path / "broken" / "shards").glob("*/done.json")):
        time.sleep(0.01)
    children = _children(process.pid)
    process.kill()
    process.wait()
    assert len(children) >= 2
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in children)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_worker_ends_the_run_with_a_message(tmp_path: Path) -> None:
    process = subprocess.Popen(_child(tmp_path), stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "broken" / "shards").glob("*/done.json")):
        time.sleep(0.01)
    for pid in _children(process.pid)[-2:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1 and "a worker process died (out of memory?)" in errors and "finished shards are kept" in errors


def test_interrupt_ends_at_once_and_unlocks(tmp_path: Path) -> None:
    process = subprocess.Popen(_child(tmp_path), stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "broken" / "shards").glob("*/done.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors and not (tmp_path / "broken" / ".lock").exists()


def _child(folder: Path) -> list[str]:
    script = folder / "child.py"
    script.write_text(_CHILD)
    return [sys.executable, str(script), str(folder / "broken"), str(Path(__file__).parent)]


def _children(parent: int) -> list[int]:
    return [int(pid) for task in Path(f"/proc/{parent}/task").iterdir() for pid in (task / "children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
