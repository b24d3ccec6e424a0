"""ROUGE, BLEU and METEOR of written texts: known values, several references, intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest
import sacrebleu

from lsm.bench import intervals
from lsm.bench.summaries import difference, score_summaries, signatures, summary_row

TEXTS = ["the cat sat on the mat", "dogs are running", "nothing in common"]
REFERENCES = [["the cat was on the mat"], ["a bird flew", "the dog runs"], ["wholly other words"]]


def test_known_values() -> None:
    found = score_summaries(TEXTS, REFERENCES).by_name
    np.testing.assert_allclose(found["rouge_1"], [5 / 6, 2 / 3, 0])  # dogs ~ dog and running ~ runs by their stems
    np.testing.assert_allclose(found["rouge_2"], [3 / 5, 0, 0])
    np.testing.assert_allclose(found["rouge_l"], [5 / 6, 2 / 3, 0])
    # Five of six words match in two runs: F = 5/6, penalty 0.5·(2/5)³.
    assert found["meteor"][0] == pytest.approx(5 / 6 * (1 - 0.5 * (2 / 5) ** 3))
    assert found["meteor"][2] == 0


def test_a_text_that_is_one_of_its_references_is_perfect() -> None:
    found = score_summaries(["a dog runs"], [["something else", "a dog runs"]]).by_name
    assert all(found[name][0] == 1 for name in ("rouge_1", "rouge_2", "rouge_l"))


def test_bleu_is_sacrebleus_with_all_references() -> None:
    references = [["the cat was on the mat", "a cat sat on it"], ["the dog runs", "dogs are running now"], ["nothing in it", "in common"]]
    scores = score_summaries(TEXTS, references)
    drawn_RG = intervals.draw(3, 20, 0)
    row = summary_row("x", TEXTS, scores, np.arange(3), drawn_RG)
    assert row["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(TEXTS, [list(some) for some in zip(*references, strict=True)]).score, abs=1e-6
    )
    assert row["rouge_1"] == pytest.approx(100 * scores.by_name["rouge_1"].mean())
    low, high = row["intervals"]["rouge_1"]
    assert low <= row["rouge_1"] <= high


def test_rows_count_bytes_and_weigh_nats_by_tokens() -> None:
    scores = score_summaries(TEXTS, REFERENCES)
    drawn_RG = intervals.draw(2, 50, 0)
    nats = (np.array([2.0, 30.0, 10.0]), np.array([1, 10, 9]))
    row = summary_row("x", TEXTS, scores, np.array([0, 0, 1]), drawn_RG, nats=nats, n_bytes=500.0)
    assert row["nats_per_token"] == pytest.approx(42 / 20) and row["unique"] == 3
    assert row["rouge_1_per_kilobyte"] == pytest.approx(2 * row["rouge_1"])
    assert "rouge" in signatures() and "no WordNet" in signatures()["meteor"]


def test_differences_are_paired() -> None:
    scores = score_summaries(TEXTS, REFERENCES)
    drawn_RG = intervals.draw(3, 50, 0)
    same = difference("same", scores, scores, np.arange(3), drawn_RG)
    assert same["rouge_1"] == 0 and same["intervals"]["rouge_1"] == [0, 0]
    worse = score_summaries(["x", "y", "z"], REFERENCES)
    assert difference("d", scores, worse, np.arange(3), drawn_RG)["rouge_1"] == pytest.approx(100 * scores.by_name["rouge_1"].mean())
