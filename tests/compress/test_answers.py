"""Scores against known values, and what has collapsed is named."""

from __future__ import annotations

import pytest
import torch

from lsm.bench.answers import answer_f1, exact_match, normalised
from lsm.bench.compression_controls import best_sentences, first_bytes, principal_components, text_vectors
from lsm.bench.compression_findings import collapse, soft_token_findings
from lsm.bench.joint import joint_answers
from lsm.lm.frozen import FrozenLM
from lsm.text.questions import Question, others


def test_squad_normalisation() -> None:
    assert normalised("The  U.S. Army, a force!") == "us army force"
    assert exact_match("an Army.", ["Navy", "The army"]) == 1.0
    assert answer_f1("the red house", ["red barn house", "x"]) == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert answer_f1("", ["x"]) == 0.0


def test_joint_rescoring_takes_the_best_sum() -> None:
    tables = [{"a": -1.0, "b": -2.0}, {"a": -4.0, "b": -0.5}]
    scorers = [lambda pairs, table=table: [table[answer] for _, answer in pairs] for table in tables]
    assert joint_answers([["a", "b"], ["", "a"], ["", ""]], scorers) == ["b", "a", ""]


def test_controls_keep_their_budget(lm: FrozenLM) -> None:
    one = Question("1", "t", "Anna lived in Leeds. Ruth was born in Bath. It rained all day.", "Ruth?", ("Bath",))

    def like(texts: list[str]):
        import numpy as np

        return np.array([[1.0, "Ruth" in text] for text in texts])

    chosen = best_sentences(lm, one, 12, like)
    torch.testing.assert_close(chosen, text_vectors(lm, "Ruth was born in Bath.")[:12])
    assert len(first_bytes(lm, "äöü", 3)) == len(text_vectors(lm, "ä"))
    found = principal_components(lm, one.text, 6)
    assert found.shape == (6, lm.width)
    directions = torch.nn.functional.normalize(found[1:], dim=-1)
    torch.testing.assert_close(directions @ directions.T, torch.eye(5), atol=1e-4, rtol=1e-3)


def test_shuffled_texts_are_of_other_articles_or_at_least_others(questions: list[Question]) -> None:
    article = {one.text: one.article for one in questions}
    found = others(questions)
    assert set(found) == set(article) and all(article[text] != article[other] for text, other in found.items())
    one_article = others([Question("", "t", text, "?", ("a",)) for text in ("A.", "B.", "C.")])
    assert len(one_article) == 3 and all(text != other for text, other in one_article.items())
    assert others(questions[:2]) == {}  # both on one text


def test_collapse_is_named() -> None:
    alike = [torch.ones(3, 8) + 1e-3 * torch.randn(3, 8) for _ in range(4)]
    spread = [torch.randn(3, 8) for _ in range(4)]
    used, unused = {"intervals": {"nll": [0.2, 0.4]}}, {"intervals": {"nll": [-0.1, 0.1]}}
    named = collapse(soft_token_findings(alike, embedding_rms=1.0), {"unique_answers": 0.1}, unused)
    assert len(named) == 4
    assert collapse(soft_token_findings(spread, embedding_rms=1.0), {"unique_answers": 0.9}, used) == []
