"""Contextual sentence vectors: what stands before is read, never pooled, and never crosses a document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lsm.corpus.format import same_space
from lsm.corpus.reader import Corpus
from lsm.encode import worker
from lsm.encode.contextual import texts_before
from lsm.encode.encoder import EncodedBatch, load_encoder
from lsm.encode.transformer_encoder import TransformerEncoder

TEXTS = ["He refused to come.", "It was the coldest winter that anyone remembered, and the river froze.", "He refused to come."]
BEFORE = ["The king asked the miller to court.", "", "The dog was called to its supper. " * 60]


def test_what_stands_before_ends_with_the_document() -> None:
    assert texts_before([["a", "b", "c"], ["d", "e"]], 2) == ["", "a", "a b", "", "d"]
    assert texts_before([["a", "b", "c"]], 1) == ["", "a", "b"]


@pytest.mark.real
def test_own_tokens_are_pooled_after_what_was_read_before() -> None:
    import torch

    encoder = load_encoder("minilm", device="cpu", precision="float32")
    assert isinstance(encoder, TransformerEncoder)
    alone, found = encoder.encode(TEXTS), encoder.encode_in_context(TEXTS, BEFORE)
    np.testing.assert_allclose(found.vectors[1], alone.vectors[1], atol=1e-6)  # nothing before it
    assert found.n_tokens.tolist() == alone.n_tokens.tolist() and not found.truncated.any()
    cosine = (found.vectors * alone.vectors).sum(axis=1)
    assert cosine[0] < 0.95 and cosine[2] < 0.95 and found.vectors[0] @ found.vectors[2] < 0.95
    one_by_one = [encoder.encode_in_context([text], [before]).vectors[0] for text, before in zip(TEXTS, BEFORE, strict=True)]
    np.testing.assert_allclose(found.vectors, one_by_one, atol=1e-5)
    whole = encoder.encode([f"{BEFORE[0]} {TEXTS[0]}"])
    n = int(whole.n_tokens[0]) - int(alone.n_tokens[0])
    states_TD = encoder.token_states([f"{BEFORE[0]} {TEXTS[0]}"])[0][0]
    by_hand = torch.nn.functional.normalize(torch.cat([states_TD[:1], states_TD[1 + n :]]).mean(0), dim=0)
    np.testing.assert_allclose(found.vectors[0], by_hand.numpy(), atol=1e-5)


@pytest.mark.real
def test_a_corpus_in_context(run_cli, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("The king asked the miller to court. He refused to come. The king was angry.")
    (tmp_path / "two.txt").write_text("A dog slept. He refused to come.")
    how = ["--encoder", "minilm", "--precision", "float32", "--quiet"]
    for context in ("0", "2"):
        assert run_cli("encode-corpus", tmp_path / "*.txt", "--out", tmp_path / context, "--context-sentences", context, *how)[0] == 0
    alone, found = Corpus.open(tmp_path / "0"), Corpus.open(tmp_path / "2")
    assert found.encoder["context_sentences"] == 2 and not same_space(alone.encoder, found.encoder)
    encoder = load_encoder("minilm", device="cpu", precision="float32")
    assert isinstance(encoder, TransformerEncoder)
    texts = [sentence for number in range(2) for sentence in found.texts(number)]
    before = texts_before([found.texts(number) for number in range(2)], 2)
    vectors = np.concatenate([found.vectors(number) for number in range(2)])
    np.testing.assert_allclose(vectors, encoder.encode_in_context(texts, before).vectors, atol=1e-3)
    assert not np.allclose(found.vectors(0)[1], alone.vectors(0)[1], atol=0.02)
    code, _, err = run_cli("encode-corpus", tmp_path / "*.txt", "--out", tmp_path / "0", "--context-sentences", "2", *how)
    assert code == 2 and "context_sentences: None there, 2 now" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder", "stub", "--context-sentences", "2"], "reads each text by itself"),
        (["--encoder", "stub", "--context-sentences", "-1"], "must be 0 or more"),
        (["--encoder", "stub", "--context-sentences", "2", "--residual", "learned"], "leave out one of the two"),
    ],
)
def test_what_cannot_be_read_in_context(run_cli, tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "a.txt").write_text("The king asked. He refused.")
    code, _, err = run_cli("encode-corpus", tmp_path / "a.txt", "--out", tmp_path / "out", "--quiet", *options)
    assert code == 2 and message in err and not (tmp_path / "out").exists()


def test_what_stands_before_reaches_the_encoder_with_its_text() -> None:
    class Echo:
        """A vector that tells how long the text and what stands before it are."""

        name = "echo"

        def encode_in_context(self, texts: list[str], before: list[str]) -> EncodedBatch:
            assert texts
            pairs = np.array([[len(text), len(earlier)] for text, earlier in zip(texts, before, strict=True)], np.float32)
            return EncodedBatch(pairs, np.ones(len(texts), np.int32), np.zeros(len(texts), bool))

    loaded = worker._Loaded(Echo(), None)  # type: ignore[arg-type]
    task = worker._Texts(["a", "bb"], ["", "a"])
    assert worker._encode(loaded, task).vectors.tolist() == [[1, 0], [2, 1]] and worker._probe(loaded, task) > 0
    assert texts_before([["one", "two", "three"]], 5, longest=4) == ["", "one", " two"]
