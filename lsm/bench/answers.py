"""Answers beside those that people gave: exact match and F1 with SQuAD's own normalisation (Rajpurkar et al. 2016, evaluate-v1.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation)


def normalised(answer: str) -> str:
    """Lower case, without punctuation, articles and repeated white space, in that order."""
    bare = "".join(letter for letter in answer.lower() if letter not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 where the answer equals any of those given."""
    return float(any(normalised(answer) == normalised(gold) for gold in golds))


def answer_f1(answer: str, golds: Sequence[str]) -> float:
    """The best F1 of words over the answers given."""
    return max(_f1(normalised(answer).split(), normalised(gold).split()) for gold in golds)


def _f1(found: list[str], wanted: list[str]) -> float:
    common = sum((Counter(found) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
