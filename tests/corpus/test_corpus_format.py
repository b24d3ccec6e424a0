"""The corpus format keeps what it is given: round trip over any text, equal bytes for equal input, damage is found and named."""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.commands.inspect import Options, run
from lsm.corpus.format import require_same_space
from lsm.corpus.reader import Corpus
from lsm.corpus.verify import verify
from lsm.corpus.writer import SegmentedDocument, text_sha256, write_corpus
from lsm.errors import UserError

DIM = 8
ENCODER = {"name": "test", "sha256": "a" * 16, "pooling": "mean", "normalised": True, "dtype": "float32", "dim": DIM, "max_tokens": 64}

words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
gaps = st.sampled_from(["", " ", "\n", "\r\n\r\n", "\t ", "\u00a0"])


@dataclass
class Piece:
    text: str
    char_start: int
    char_end: int
    gap: str
    section: int = 0
    part: int = 0


def document(doc_id: str, lead: str, pairs: list[tuple[str, str]]) -> SegmentedDocument:
    at, pieces = len(lead), []
    for text, gap in pairs:
        pieces.append(Piece(text, at, at + len(text), gap))
        at += len(text) + len(gap)
    whole = lead + "".join(text + gap for text, gap in pairs)
    return SegmentedDocument(doc_id, "source", "title", text_sha256(whole), len(whole), lead, pieces)


def small(path: Path) -> tuple[Corpus, np.ndarray]:
    lengths = [3, 1, 5, 2, 4]
    documents = [document(f"d{i}", "\n" * (i % 2), [(f"Sentence {k} of {i}é.", " ") for k in range(n)]) for i, n in enumerate(lengths)]
    z_SD = np.random.default_rng(0).standard_normal((15, DIM)).astype(np.float16)
    write_corpus(path, documents, z_SD, ENCODER, documents_per_shard=2)
    return Corpus.open(path), z_SD


def memory_mapped(array: np.ndarray | None) -> bool:
    """Whether what lies beneath a chain of views is a map of a file."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array.obj if isinstance(array, memoryview) else array, mmap.mmap)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(gaps, st.lists(st.tuples(words, gaps), max_size=5)), max_size=6), st.integers(1, 4))
def test_any_text_comes_back(documents: list, per_shard: int) -> None:
    made = [document(f"d{i}", lead, pairs) for i, (lead, pairs) in enumerate(documents)]
    z_SD = np.random.default_rng(1).standard_normal((sum(len(d.sentences) for d in made), DIM)).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), made, z_SD, ENCODER, documents_per_shard=per_shard)
        corpus = Corpus.open(folder)
        verify(corpus)
        for i, (lead, pairs) in enumerate(documents):
            assert corpus.document_text(i) == lead + "".join(text + gap for text, gap in pairs)
            assert corpus.texts(i) == [text for text, _ in pairs]
            np.testing.assert_array_equal(corpus.vectors(i), z_SD[slice(*corpus.rows(i))])


def test_rows_in_any_order(tmp_path: Path) -> None:
    corpus, z_SD = small(tmp_path / "c")
    rows = [14, 0, 7, 7, 3]
    np.testing.assert_array_equal(corpus.vector_at(rows), z_SD[rows])
    flat = [text for doc in range(corpus.n_documents) for text in corpus.texts(doc)]
    assert corpus.text_at(rows) == [flat[row] for row in rows]
    assert corpus.document_of(rows).tolist() == [4, 0, 2, 2, 1]
    assert corpus.column("index").tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3]
    view = corpus.vectors(2)
    assert view.shape == (5, DIM) and memory_mapped(view)
    with pytest.raises(IndexError):
        corpus.vector_at([15])


def test_same_input_same_bytes(tmp_path: Path) -> None:
    small(tmp_path / "a")
    small(tmp_path / "b")
    for file in (tmp_path / "a").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes(), file


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    z_SD = np.zeros((4, DIM), np.float32)
    z_SD[2, 3] = 1e6
    with pytest.raises(UserError, match=r"document 'b', sentence 0: .*not finite"):
        write_corpus(tmp_path, [document("a", "", [("x", " ")] * 2), document("b", "", [("y", " ")] * 2)], z_SD, ENCODER)


def truncate(folder: Path) -> None:
    file = folder / "semantic.npy"
    file.write_bytes(file.read_bytes()[:-10])


def flip(folder: Path) -> None:
    file = folder / "sentences.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def lose(folder: Path) -> None:
    (folder / "done.json").unlink()


@pytest.mark.parametrize(("damage", "words"), [(truncate, "semantic.npy differs"), (flip, "sentences.parquet differs"), (lose, "missing")])
def test_damage_is_named_with_the_way_out(tmp_path: Path, damage, words: str) -> None:
    small(tmp_path / "c")
    damage(tmp_path / "c" / "shards" / "00001")
    with pytest.raises(UserError, match=f"shard 00001: .*{words}.*; run the encode-corpus command that made it again"):
        run(Options(path=tmp_path / "c", verify=True, quiet=True))


def test_reading_a_truncated_shard_names_the_file(tmp_path: Path) -> None:
    corpus, _ = small(tmp_path / "c")
    truncate(tmp_path / "c" / "shards" / "00000")
    with pytest.raises(UserError, match=r"00000/semantic.npy is damaged or missing"):
        corpus.vectors(0)


def test_inspect_describes_and_gives_the_text_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    corpus, _ = small(tmp_path / "c")
    results = run(Options(path=tmp_path / "c", verify=True, quiet=True))
    assert results["whole"] is True and results["n_sentences"] == 15 and results["fingerprint"] == corpus.fingerprint
    capsys.readouterr()
    run(Options(path=tmp_path / "c", text=True, quiet=True))
    assert capsys.readouterr().out == "".join(corpus.document_text(i) for i in range(5))


def test_inspect_of_weights(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.ones((2, 3), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert run(Options(path=tmp_path, verify=True))["tensors"]["model.safetensors"]["parameters"] == 6
    save_file({"a": np.full((2, 3), np.nan, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tensor a holds NaN"):
        run(Options(path=tmp_path, verify=True))
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-3])
    with pytest.raises(UserError, match="truncated"):
        run(Options(path=tmp_path))


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_what_is_not_a_corpus(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="encode-corpus"):
        Corpus.open(tmp_path / name)
    with pytest.raises(UserError):
        run(Options(path=tmp_path / name))


def test_another_encoder_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    corpus, _ = small(tmp_path / "c")
    corpus.require_encoder(ENCODER | {"dtype": "bfloat16", "name": "copy"})
    with pytest.raises(UserError, match=r"encoded by test .*\[[0-9a-f]{16}\], but other .*\[[0-9a-f]{16}\]"):
        corpus.require_encoder(ENCODER | {"sha256": "b" * 16, "name": "other"})
    with pytest.raises(UserError, match="this thing"):
        require_same_space(ENCODER, ENCODER | {"dim": 9}, what="this thing")


def test_newer_format_is_refused(tmp_path: Path) -> None:
    small(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 3'))
    with pytest.raises(UserError, match="update lsm"):
        Corpus.open(tmp_path)


def test_sentences_are_ducks() -> None:
    made = SegmentedDocument("d", "s", "t", text_sha256("a"), 1, "", [SimpleNamespace(text="a")])  # type: ignore[list-item]
    assert "sentences" not in repr(made)
