"""The encoder budget: never exceeded, every text encoded once and in one batch, a target charged alike alone and in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lsm.decode.budget import EncoderBudget
from lsm.encode.encoder import load_encoder


class Counted:
    """The stub encoder, with a list of what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self._encoder = load_encoder("stub")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(list(texts))
        return self._encoder.encode(texts).vectors


def test_no_target_gets_more_than_the_limit() -> None:
    encode = Counted()
    budget = EncoderBudget(encode, np.eye(2, 64, dtype=np.float32), 3)
    tried = budget.try_texts([["a", "b", "a", "", " "], ["b", "c", "d", "e"]])
    assert [[one.text for one in some] for some in tried] == [["a", "b"], ["b", "c", "d"]]
    assert encode.batches == [["a", "b", "c", "d"]]
    assert budget.used_B.tolist() == [2, 3] and budget.left(0) == 1 and budget.left(1) == 0
    assert [[one.text for one in some] for some in budget.try_texts([["x", "y", "a"], ["z", "c"]])] == [["x", "a"], ["c"]]
    assert encode.batches[1:] == [["x"]], "what was encoded before is not encoded again"
    assert budget.used_B.max() == 3
    budget.try_texts([["p"], ["q"]])
    assert len(encode.batches) == 2, "nothing is left to spend"


def test_cosines_are_those_of_the_encoder() -> None:
    encode = Counted()
    target_BD = encode(["The fox sleeps."]) * 7.0
    budget = EncoderBudget(encode, target_BD, 10)
    same, other = budget.try_texts([["The fox sleeps.", "A wolf runs."]])[0]
    assert abs(same.cosine - 1) < 1e-6 and other.cosine < 0.9
    assert abs(float(np.linalg.norm(same.z_D)) - 1) < 1e-6
    assert [one.text for one in budget.hypotheses(0)] == ["The fox sleeps.", "A wolf runs."] and budget.tried(0, "A wolf runs.")


def test_a_target_is_charged_alike_alone_and_in_a_batch() -> None:
    encode = Counted()
    texts = [["a", "b", "c"], ["a", "b"]]
    together = EncoderBudget(encode, np.eye(2, 64, dtype=np.float32), 5)
    together.try_texts(texts)
    for n, some in enumerate(texts):
        alone = EncoderBudget(encode, np.eye(2, 64, dtype=np.float32)[n : n + 1], 5)
        alone.try_texts([some])
        assert alone.used_B[0] == together.used_B[n]
