"""Two LMs answer together: each candidate answer of either is scored by both, and the best sum of mean log-likelihoods wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Score = Callable[[list[tuple[int, str]]], list[float]]
"""Pairs of a question's number and a candidate to the mean log-likelihood of each under one LM with its own tokenizer."""


def joint_answers(candidates: Sequence[Sequence[str]], scorers: Sequence[Score]) -> list[str]:
    """For each question the candidate that all LMs together find most likely; ties go to the first.

    Args:
        candidates: for each question the answers of the LMs; empty ones never win against others.
    """
    pairs = [(n, answer) for n, answers in enumerate(candidates) for answer in dict.fromkeys(answers) if answer]
    sums = np.sum([score(pairs) for score in scorers], axis=0) if pairs else []
    best: dict[int, tuple[float, str]] = {}
    for (n, answer), total in zip(pairs, sums, strict=True):
        if n not in best or total > best[n][0]:
            best[n] = float(total), answer
    return [best[n][1] if n in best else "" for n in range(len(candidates))]
