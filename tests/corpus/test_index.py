"""The index beside the shards: with it, without it and with a stale one a corpus reads the same; packing is what it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.corpus import npy, shards
from lsm.corpus.npy import map_npy, npy_header
from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import _pack, _windows
from lsm.corpus.verify import verify
from lsm.errors import UserError


@pytest.fixture
def corpus(run_cli: Callable, tmp_path: Path) -> Corpus:
    (tmp_path / "texts").mkdir()
    for number in range(6):
        text = "\n\n".join(f"Paragraph {k} of text {number} goes first. It has a second sentence too." for k in range(1 + number % 3))
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    how = ["--out", tmp_path / "corpus", "--encoder", "stub", "--shard-rows", "5", "--quiet"]
    assert run_cli("encode-corpus", tmp_path / "texts", *how).code == 0
    return Corpus.open(tmp_path / "corpus")


def told(corpus: Corpus) -> dict[str, list]:
    """All that the index answers."""
    return {"starts": corpus.starts.tolist(), "part": corpus.column("part").tolist(), "section": corpus.column("section").tolist()}


def test_with_and_without_it_is_the_same(corpus: Corpus) -> None:
    before, fingerprint = told(corpus), corpus.fingerprint
    assert corpus.n_shards > 1 and max(before["section"]) == 2
    table = corpus.documents
    assert before["starts"] == [0, *np.cumsum(table["n_sentences"].to_pylist()).tolist()]
    assert [corpus.shard_of(doc) for doc in range(corpus.n_documents)] == table["shard"].to_pylist()
    shutil.rmtree(corpus.path / "index")
    old = Corpus.open(corpus.path)
    assert told(old) == before and old.fingerprint == fingerprint
    verify(old)


def test_opening_and_sampling_read_no_table(corpus: Corpus) -> None:
    for file in (corpus.path / "documents.parquet", *corpus.path.glob("shards/*/*.parquet")):
        file.unlink()
    bare = Corpus.open(corpus.path)
    assert bare.column("part").shape == (bare.n_sentences,) and bare.vectors(bare.n_documents - 1).shape[1] == bare.dim
    assert bare.vector_at([bare.n_sentences - 1, 0]).shape == (2, bare.dim)


def test_an_index_of_other_tables_is_not_believed(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    manifest, before = (corpus.path / "manifest.json").read_bytes(), told(corpus)
    (tmp_path / "more.txt").write_text("A further text stands here. It came later.")
    how = ["--out", corpus.path, "--append", "--encoder", "stub", "--shard-rows", "5", "--quiet"]
    assert run_cli("encode-corpus", tmp_path / "more.txt", *how).code == 0
    grown = Corpus.open(corpus.path)
    assert told(grown)["starts"][-1] == before["starts"][-1] + 2
    # As an append leaves it that dies between the index and the manifest.
    (corpus.path / "manifest.json").write_bytes(manifest)
    assert told(Corpus.open(corpus.path)) == before


def test_damage_is_found(corpus: Corpus) -> None:
    file = corpus.path / "index" / "section.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"index is damaged .*section.npy differs from its hash.*delete that folder"):
        verify(Corpus.open(corpus.path))
    file.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"index is damaged .*delete that folder"):
        Corpus.open(corpus.path).column("part")


def test_the_command_that_made_the_corpus_mends_it(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    how = ["encode-corpus", tmp_path / "texts", "--out", corpus.path, "--encoder", "stub", "--shard-rows", "5", "--quiet"]
    before = {file.name: file.read_bytes() for file in (corpus.path / "index").iterdir()}
    (corpus.path / "index" / "part.npy").write_bytes(before["part.npy"][:-1])
    assert "is damaged" in run_cli("inspect", corpus.path, "--verify").stderr and run_cli(*how).code == 0
    assert {file.name: file.read_bytes() for file in (corpus.path / "index").iterdir()} == before
    shutil.rmtree(corpus.path / "index")
    assert run_cli(*how).code == 0
    assert {file.name: file.read_bytes() for file in (corpus.path / "index").iterdir()} == before


def test_more_shards_than_files_may_be_open(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(shards, "_ARRAYS_KEPT", 2)
    few = Corpus.open(corpus.path)
    rows = np.random.default_rng(0).permutation(np.tile(np.arange(few.n_sentences), 4))
    np.testing.assert_array_equal(few.vector_at(rows), corpus.vector_at(rows))
    assert len(few._files._arrays._things) == 2
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, hard), hard))
        every = [Corpus.open(corpus.path).vectors(doc) for _ in range(20) for doc in range(corpus.n_documents)]
        assert np.isfinite(np.concatenate(every)).all() and len(every) > 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (5,)])
def test_npy_as_numpy_writes_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype="<f2").reshape(shape)
    np.save(tmp_path / "a.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == npy_header(shape, "<f2") + array.tobytes()
    mapped = map_npy(tmp_path / "a.npy", shape, "<f2")
    np.testing.assert_array_equal(mapped, array)
    assert not mapped.flags.writeable or not mapped.size
    with open(tmp_path / "b.npy", "wb") as handle:  # a header of another version is read too
        np.lib.format.write_array(handle, array, version=(2, 0))
    np.testing.assert_array_equal(map_npy(tmp_path / "b.npy", shape, "<f2"), array)
    for other in (((7, *shape[1:]), "<f2"), (shape, "<f4")):
        with pytest.raises(ValueError, match=r"instead of"):
            map_npy(tmp_path / "a.npy", *other)
    assert npy.npy_header(shape, "<f2") is npy_header(shape, "<f2")


@given(st.lists(st.integers(0, 60), max_size=60), st.integers(2, 24), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_packing_is_the_plain_one(lengths: list[int], context: int, n_open: int) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    documents = np.flatnonzero(np.arange(len(lengths)) % 4 != 3)
    windows_W3 = _windows(starts, documents, context)
    plain = [
        (doc, start, min(lengths[doc], start + context)) for doc in documents.tolist() for start in range(0, lengths[doc] - 1, context - 1)
    ]
    assert windows_W3.tolist() == [list(window) for window in plain]
    lengths_W = windows_W3[:, 2] - windows_W3[:, 1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("lsm.corpus.sampler._OPEN_ROWS", n_open)
        members_W, row_starts = _pack(lengths_W, context)
    found = [members_W[start:stop].tolist() for start, stop in pairwise(row_starts.tolist())]
    assert found == plainly_packed(lengths_W.tolist(), context, n_open)


def plainly_packed(lengths: list[int], context: int, n_open: int) -> list[list[int]]:
    """Each window into the fullest of the open rows that takes it, one after the other: runs in flight depend on this very order."""
    closed: list[list[int]] = []
    open_rows: list[tuple[int, list[int]]] = []  # (places left, windows)
    for window, length in enumerate(lengths):
        fitting = [row for row in open_rows if row[0] >= length]
        if fitting:
            best = min(fitting, key=lambda row: row[0])
            open_rows.remove(best)
            left, members = best[0] - length, [*best[1], window]
        else:
            left, members = context - length, [window]
        if left < 2:
            closed.append(members)
            continue
        open_rows.append((left, members))
        if len(open_rows) > n_open:
            fullest = min(open_rows, key=lambda row: row[0])
            open_rows.remove(fullest)
            closed.append(fullest[1])
    return closed + [members for _, members in open_rows]
