"""The phrase store: exact neighbours, identical sentences once, round trip through its files, damage found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lsm.corpus.reader import Corpus
from lsm.decode.phrase_store import PhraseStore
from lsm.errors import UserError


def test_a_sentence_finds_itself_and_stands_once(small_corpus: Corpus) -> None:
    store = PhraseStore.from_corpus(small_corpus)
    texts = small_corpus.texts(3)
    scores_BK, rows_BK = store.search(small_corpus.vectors(3), 2)
    assert store.texts(rows_BK[:, 0]) == texts
    assert (scores_BK[:, 0] > 0.999).all() and (scores_BK[:, 1] < 0.999).all()
    assert len(store) == len({text for doc in range(small_corpus.n_documents) for text in small_corpus.texts(doc)})
    assert store.document(0) == "doc 0" and store.text(0) == small_corpus.texts(0)[0]


def test_a_store_knows_where_its_sentences_stand(small_corpus: Corpus, tmp_path: Path) -> None:
    PhraseStore.from_corpus(small_corpus).save(tmp_path / "store")
    store = PhraseStore.open(tmp_path / "store")
    row_N, times_N = store.corpus_rows(small_corpus)
    texts = small_corpus.text_at(np.arange(small_corpus.n_sentences))
    assert row_N.tolist() == [texts.index(store.text(n)) for n in range(len(store))]
    assert times_N.tolist() == [texts.count(store.text(n)) for n in range(len(store))] and times_N.max() > 1
    for made, why in ((PhraseStore(None, store._texts, store.encoder), "not recorded"), (store, "of another corpus")):
        other = Corpus(small_corpus.path, small_corpus.manifest | {"n_tokens": -1})
        with pytest.raises(UserError, match=why):
            made.corpus_rows(other)


def test_saved_store_answers_the_same(small_corpus: Corpus, tmp_path: Path) -> None:
    store = PhraseStore.from_corpus(small_corpus)
    store.save(tmp_path / "store")
    opened = PhraseStore.open(tmp_path / "store")
    queries = np.random.default_rng(0).standard_normal((7, store.dim)).astype(np.float32)
    for one, other in zip(store.search(queries, 5), opened.search(queries, 5), strict=True):
        np.testing.assert_array_equal(one, other)
    assert opened.encoder == store.encoder and opened.texts([0, 1]) == store.texts([0, 1])


def test_a_large_store_searches_cells_and_still_finds(small_corpus: Corpus) -> None:
    store = PhraseStore.from_corpus(small_corpus, index="ivf-pq")
    _, rows_BK = store.search(small_corpus.vectors(5), 1)
    assert store.texts(rows_BK[:, 0]) == small_corpus.texts(5)


def test_faults_are_named(small_corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        PhraseStore.open(tmp_path / "nothing")
    path = tmp_path / "store"
    store = PhraseStore.from_corpus(small_corpus)
    store.save(path)
    with pytest.raises(UserError, match="needed"):
        store.require_encoder(small_corpus.encoder | {"sha256": "other"})
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        PhraseStore.open(path)
    (tmp_path / "store.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(UserError, match="does not describe"):
        PhraseStore.open(path)
    (tmp_path / "store.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        PhraseStore.open(path)
