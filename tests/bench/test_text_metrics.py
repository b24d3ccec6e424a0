"""Known values of the text scores and byte counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from lsm.bench import text_metrics

PAIRS = [
    ("The cat sat on the mat today.", "The cat sat on a mat today."),
    ("We hold these truths to be evident.", "We hold these truths to be self-evident."),
    ("", "Something was said."),
    ("Equal text stays equal.", "Equal text stays equal."),
]


def test_bleu_from_counts_is_sacrebleus_corpus_bleu() -> None:
    hypotheses, references = map(list, zip(*PAIRS, strict=True))
    scores = text_metrics.score_texts(hypotheses, references)
    assert text_metrics.bleu_of(scores.bleu_counts_NM.sum(0)) == pytest.approx(BLEU().corpus_score(hypotheses, [references]).score)
    assert scores.exact_match_N.tolist() == [0, 0, 0, 1]
    assert scores.chrf_N[2] == 0 and scores.chrf_N[3] == pytest.approx(100)


def test_token_f1_of_known_pairs() -> None:
    assert text_metrics.token_f1("The cat.", "the CAT .") == 1
    assert text_metrics.token_f1("a b c", "a b d") == pytest.approx(2 / 3)
    assert text_metrics.token_f1("a a a", "a") == pytest.approx(0.5)
    assert text_metrics.token_f1("", "a") == 0
    assert text_metrics.token_f1("", "") == 1


@given(st.text(), st.text())
def test_token_f1_is_symmetric_and_a_share(one: str, other: str) -> None:
    value = text_metrics.token_f1(one, other)
    assert 0 <= value <= 1 and value == text_metrics.token_f1(other, one)
    assert text_metrics.token_f1(one, one) == 1


def test_bytes_are_counted_in_utf8_and_compressed_together() -> None:
    texts = ["naïve", "sentence number one of several", "sentence number two of several"]
    np.testing.assert_array_equal(text_metrics.utf8_bytes(texts), [6, 30, 30])
    alone = text_metrics.zstd_bytes(texts)
    assert (alone > 6).all()
    assert text_metrics.zstd_bytes_together(texts) < alone.mean()


def test_signatures_name_the_tokenizer_and_version() -> None:
    signatures = text_metrics.signatures()
    assert "tok:13a" in signatures["bleu"] and "version:" in signatures["chrf"]
