"""int8 storage of the semantic part: what is lost is bounded, all that reads a corpus reads it, equal input gives equal bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lsm.corpus import derive as module
from lsm.corpus.int8 import from_int8, to_int8
from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import PackedSampler
from lsm.corpus.verify import verify
from lsm.errors import UserError

TEXTS = {
    "lake": "The lake froze early that year. Nobody could remember such a winter. Boats lay in the ice.",
    "city": "A city of glass stood there. It had nine gates and a wall. The gates were shut at night. Guards slept in the towers above.",
    "sea": "The sea came in at noon. Two men watched it from the dune. One of them spoke of rain.",
}


@pytest.fixture
def corpus(run_cli: Callable, tmp_path: Path) -> Corpus:
    return encoded(run_cli, tmp_path / "corpus")


def encoded(run_cli: Callable, out: Path, *more: str) -> Corpus:
    texts = out.with_name(f"{out.name}-texts")
    texts.mkdir()
    for key, text in TEXTS.items():
        (texts / f"{key}.txt").write_text(text)
    assert run_cli("encode-corpus", texts, "--out", out, "--encoder", "stub", "--shard-rows", "5", "--quiet", *more).code == 0
    return Corpus.open(out)


def as_int8(run_cli: Callable, corpus: Corpus, out: Path) -> Corpus:
    outcome = run_cli("corpus", "convert", corpus.path, "--vectors", "int8", "--out", out, "--quiet")
    assert outcome.code == 0, outcome.stderr
    return Corpus.open(out)


def every_vector(corpus: Corpus, part: str = "semantic") -> np.ndarray:
    return corpus.vector_at(np.arange(corpus.n_sentences), part)


finite = st.floats(-6e4, 6e4, width=16)


@given(arrays.arrays(np.float16, arrays.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=finite))
@settings(max_examples=200, deadline=None)
def test_half_a_step_is_lost_and_no_more_by_doing_it_twice(z_SD: np.ndarray) -> None:
    stored_SD, scale_S = to_int8(z_SD)
    assert stored_SD.dtype == np.int8 and scale_S.dtype == np.float32 and stored_SD.min() >= -127
    back_SD = from_int8(stored_SD, scale_S)
    exact_SD, step_S1 = z_SD.astype(np.float64), scale_S.astype(np.float64)[:, None]
    rounding_SD = np.abs(exact_SD) * 2.0**-11 + 2.0**-24  # of float16, below its smallest normal number the second
    assert (np.abs(back_SD - exact_SD) <= step_S1 * 0.5001 + rounding_SD).all()
    if scale_S.min() * 127 > 2.0**-14:  # float16 has its full precision
        again_SD, again_S = to_int8(back_SD)
        np.testing.assert_array_equal(again_SD, stored_SD)
        np.testing.assert_array_equal(from_int8(again_SD, again_S), back_SD)


def test_known_values() -> None:
    stored_SD, scale_S = to_int8(np.array([[0.5, -1.0, 0.0, 0.25], [0, 0, 0, 0]], np.float16))
    assert stored_SD.tolist() == [[64, -127, 0, 32], [0, 0, 0, 0]] and scale_S.tolist() == [np.float32(1) / np.float32(127), 0.0]


def test_every_way_to_read_gives_the_same_floats(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    small = as_int8(run_cli, corpus, tmp_path / "int8")
    assert small.parts() == [{"name": "semantic", "dim": corpus.dim, "dtype": "int8", "scale": "rows"}]
    z_SD, exact_SD = every_vector(small), every_vector(corpus).astype(np.float32)
    assert z_SD.dtype == np.float16
    cosine_S = (z_SD * exact_SD).sum(1) / np.linalg.norm(z_SD.astype(np.float32), axis=1) / np.linalg.norm(exact_SD, axis=1)
    assert cosine_S.min() > 0.999 and not np.array_equal(z_SD, every_vector(corpus))
    np.testing.assert_array_equal(np.concatenate([small.vectors(doc) for doc in range(small.n_documents)]), z_SD)
    batch = PackedSampler(small, np.arange(small.n_documents), context=4, rows=8).in_order(0)
    there_BS = batch.row_id_BS >= 0
    np.testing.assert_array_equal(batch.z_BSD[there_BS], z_SD[batch.row_id_BS[there_BS]].astype(np.float32))
    for doc in range(corpus.n_documents):
        assert small.document_text(doc) == corpus.document_text(doc) and small.sentences(doc).equals(corpus.sentences(doc))
    assert run_cli("inspect", small.path, "--verify").code == 0
    assert f"semantic {corpus.dim} × int8" in run_cli("inspect", small.path).stdout
    assert run_cli("build-index", "--corpus", small.path, "--out", tmp_path / "store.faiss", "--quiet").code == 0
    assert run_cli("corpus", "convert", small.path, "--out", tmp_path / "rows", "--quiet").code == 0
    tables = [pq.read_table(file)["semantic"].to_pylist() for file in sorted((tmp_path / "rows" / "data").iterdir())]
    np.testing.assert_array_equal(np.array([row for table in tables for row in table], np.float32), z_SD.astype(np.float32))


def test_copies_keep_the_bytes(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    small = as_int8(run_cli, corpus, tmp_path / "int8")
    assert run_cli("corpus", "split", small.path, "--out", tmp_path / "parts", "--held-out-fraction", "0.4", "--quiet").code == 0
    parts = [tmp_path / "parts" / name for name in ("train", "held-out")]
    assert run_cli("corpus", "merge", *parts, "--out", tmp_path / "merged", "--quiet").code == 0
    merged = Corpus.open(tmp_path / "merged")
    for path in (*parts, merged.path):
        verify(Corpus.open(path))
    for doc, doc_id in enumerate(merged.doc_ids):
        np.testing.assert_array_equal(merged.vectors(doc), small.vectors(small.doc_ids.index(doc_id)))


def test_same_bytes_and_resumed_is_unbroken(run_cli: Callable, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = as_int8(run_cli, corpus, tmp_path / "unbroken")
    copy, calls = module._copy, []

    def dies(*arguments: object) -> dict:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return copy(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(BaseException):  # noqa: B017
        patched.setattr(module, "_copy", dies)
        assert as_int8(run_cli, corpus, tmp_path / "resumed") is None
    with pytest.raises(UserError, match="unfinished"):
        Corpus.open(tmp_path / "resumed")
    resumed = as_int8(run_cli, corpus, tmp_path / "resumed")
    assert resumed.fingerprint == unbroken.fingerprint and resumed.n_shards == 3
    for file in (file for file in unbroken.path.rglob("*") if file.is_file()):
        assert file.read_bytes() == (resumed.path / file.relative_to(unbroken.path)).read_bytes(), file


def test_codes_come_along(run_cli: Callable, tmp_path: Path) -> None:
    how = ["--residual", "superposition", "--residual-lm", "stub", "--residual-dims", "64"]
    corpus = encoded(run_cli, tmp_path / "corpus", *how)
    small = as_int8(run_cli, corpus, tmp_path / "int8")
    for doc in range(corpus.n_documents):
        for name, array in corpus.residual_arrays(doc).items():
            np.testing.assert_array_equal(small.residual_arrays(doc)[name], array)
    verify(small)


def test_damage_is_found(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    small = as_int8(run_cli, corpus, tmp_path / "int8")
    scales = small.path / "shards" / "00001" / "semantic-scale.npy"
    whole = scales.read_bytes()
    scales.write_bytes(whole[:-4])
    with pytest.raises(UserError, match=r"semantic-scale.npy is damaged"):
        every_vector(Corpus.open(small.path))
    scales.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"semantic-scale.npy differs from its hash"):
        verify(Corpus.open(small.path))


def test_what_does_not_go_together_is_refused(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    small = as_int8(run_cli, corpus, tmp_path / "int8")
    outcome = run_cli("corpus", "merge", corpus.path, small.path, "--out", tmp_path / "both")
    assert outcome.code == 2 and f"lsm corpus convert {corpus.path} --vectors int8" in outcome.stderr
    outcome = run_cli("corpus", "convert", small.path, "--vectors", "int8", "--out", tmp_path / "again")
    assert outcome.code == 2 and "int8 vectors already" in outcome.stderr
    assert not (tmp_path / "both").exists() and not (tmp_path / "again").exists()


@pytest.mark.real
def test_what_minilm_vectors_lose() -> None:
    from lsm.encode.encoder import load_encoder

    try:
        encoder = load_encoder("minilm")
    except UserError:
        pytest.skip("minilm is not in the cache")
    texts = [text for whole in TEXTS.values() for text in whole.split(". ")]
    z_SD = encoder.encode(texts).vectors
    back_SD = from_int8(*to_int8(z_SD.astype(np.float16))).astype(np.float32)
    cosine_S = (z_SD * back_SD).sum(1) / np.linalg.norm(z_SD, axis=1) / np.linalg.norm(back_SD, axis=1)
    assert cosine_S.mean() > 0.99995 and cosine_S.min() > 0.9998
