"""`lsm pretrain --index`: hard negatives out of the corpus' own phrase store, and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lsm.corpus.reader import Corpus
from lsm.decode.phrase_store import PhraseStore, phrases_beside
from lsm.latent.hard_negatives import NOBODY
from lsm.training.loop import PREPARED

TINY = (
    "--steps", 3, "--eval-every", 3, "--save-every", 3, "--threads", 1, "--optimizer.warmup-steps", 1, "--model.context", 8,
    "--model.hidden", 16, "--model.layers", 1, "--model.heads", 2, "--data.batch-sentences", 32, "--data.held-out-fraction", 0.2,
)  # fmt: skip
HARD = ("--objectives.hard-negatives", 2, "--objectives.hard-negatives-near", 6)


def test_hard_negatives_come_out_of_the_store(run_cli: Callable, tmp_path: Path, training_corpus: Path, held_out_corpus: Path) -> None:
    index = tmp_path / "store"
    assert run_cli("build-index", "--corpus", training_corpus, "--out", index).code == 0
    asked = ("pretrain", "--corpus", training_corpus, "--out", tmp_path / "run", *TINY)
    outcome = run_cli(*asked, *HARD, "--index", index)
    assert outcome.code == 0, outcome.stderr
    assert "hard negatives:" in outcome.stderr
    corpus = Corpus.open(training_corpus)
    (file,) = (tmp_path / "run" / PREPARED / "hard-negatives").iterdir()
    near_RK = np.load(file)[:, 1:]
    texts, all_texts = corpus.text_at(np.arange(corpus.n_sentences)), []
    for row, near_K in enumerate(near_RK):
        all_texts += (found := [texts[other] for other in near_K[near_K != NOBODY]])
        assert texts[row] not in found
    assert all_texts and all(texts.count(text) == 1 for text in set(all_texts))

    assert run_cli(*asked).code == 2  # the run was made with hard negatives
    other = ("pretrain", "--corpus", training_corpus, "--out", tmp_path / "other", *TINY)
    outcome = run_cli(*other, *HARD)
    assert outcome.code == 2 and "needs --index FILE" in outcome.stderr
    outcome = run_cli(*other, "--index", index)
    assert outcome.code == 2 and "is for hard negatives" in outcome.stderr
    store = PhraseStore.open(index)
    PhraseStore(store.nearest, store._texts.drop_columns(["row", "times"]), store.encoder, store.corpus).save(phrases_beside(index))
    outcome = run_cli(*other, *HARD, "--index", phrases_beside(index))
    assert outcome.code == 2 and "store of phrases" in outcome.stderr
    PhraseStore.from_corpus(Corpus.open(held_out_corpus)).save(tmp_path / "foreign")
    outcome = run_cli(*other, *HARD, "--index", tmp_path / "foreign")
    assert outcome.code == 2 and "of another corpus" in outcome.stderr and corpus.fingerprint in outcome.stderr
    assert not (tmp_path / "other").exists()
