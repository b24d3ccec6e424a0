"""Answers of a frozen LM from contexts given in different ways: one row of the compression scoreboard for each way.

Shape letters: N questions, P context positions, H hidden width, A answer tokens of all questions together, G articles, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lsm.bench import intervals
from lsm.bench.answers import answer_f1, exact_match
from lsm.lm.contexts import answers_read, read_contexts, read_preamble, write_answers
from lsm.lm.frozen import FrozenLM
from lsm.lm.loss import frozen_cross_entropy
from lsm.text.questions import Question

NEW_TOKENS = 16
_CONTEXTS = 4


class Asking(Protocol):
    """How questions are put: the same for every row."""

    @property
    def preamble(self) -> list[int]: ...

    def questions(self, questions: Sequence[Question], *, anchor: str = "Answer:") -> list[list[int]]: ...

    def answers(self, answers: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class Way:
    """One way to give the LM its contexts."""

    label: str
    contexts: Callable[[list[Question]], tuple[list[Tensor], AbstractContextManager[Any] | None]]
    """Questions, one for each context, to the contexts [P, H] and what is open while they are read."""
    ratio: int | None = None
    per_question: bool = False
    """The context depends on the question too."""
    anchor: str = "Answer:"
    equals: str | None = None
    """Label of the row whose contexts these are by construction."""
    uncounted: int = 0
    """Positions at the end of each context that say nothing of its text."""
    made_from: Any = None
    """What else tells these contexts from others of the same label, ratio, LM and questions, as JSON: weights, lengths."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Open while the LM reads and answers."""


@dataclass
class Answered:
    """What came out of one way, a value for each question."""

    texts: list[str] = field(default_factory=list)
    scores: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in ("f1", "em", "first_token", "nll", "gap", "positions")}
    )


@torch.no_grad()
def answer_all(lm: FrozenLM, asking: Asking, way: Way, questions: Sequence[Question], *, write: bool = True) -> Answered:
    """Every question answered freely (unless `write` is off: then texts are empty) and scored teacher-forced, questions of one text beside
    each other; order as given."""
    order = sorted(range(len(questions)), key=lambda n: questions[n].text)
    groups: dict[Any, list[int]] = {}
    for n in order:
        groups.setdefault(n if way.per_question else questions[n].text, []).append(n)
    keys = list(groups)
    found: dict[int, tuple[str, dict[str, float]]] = {}
    with way.around():
        preamble = read_preamble(lm, asking.preamble)
    for start in range(0, len(keys), _CONTEXTS * (3 if way.per_question else 1)):
        numbers = [groups[key] for key in keys[start : start + _CONTEXTS * (3 if way.per_question else 1)]]
        contexts, opened = way.contexts([questions[rows[0]] for rows in numbers])
        row_of_N = [row for row, members in enumerate(numbers) for _ in members]
        asked = [n for members in numbers for n in members]
        with way.around():
            read = read_contexts(lm, contexts, row_of_N, preamble=preamble, around=opened)
            prompts = asking.questions([questions[n] for n in asked], anchor=way.anchor)
            answers = asking.answers([questions[n].answers[0] for n in asked])
            hidden_AH, read = answers_read(lm, read, prompts, answers)
            ends = [prompt[-1:] for prompt in prompts]
            written = write_answers(lm, read, ends, max_new_tokens=NEW_TOKENS) if write else [""] * len(asked)
        target_A = torch.tensor([token for row in answers for token in row], device=lm.device)
        nll_A = frozen_cross_entropy(hidden_AH, lm.head_VH, target_A)
        likely_A = lm.logits(hidden_AH).argmax(-1)
        place = 0
        for n, row, answer, text in zip(asked, row_of_N, answers, written, strict=True):
            span = slice(place, place + len(answer))
            place += len(answer)
            golds = questions[n].answers
            forced = answer_f1(lm.tokens.decode(likely_A[span].tolist()).split("\n")[0], golds)
            free = answer_f1(text, golds)
            first = float(likely_A[span.start] == target_A[span.start])
            found[n] = text, {
                "f1": free, "em": exact_match(text, golds), "first_token": first, "nll": float(nll_A[span].mean()),
                "gap": forced - free, "positions": float(len(contexts[row]) - way.uncounted),
            }  # fmt: skip
    result = Answered()
    for n in range(len(questions)):
        text, scores = found[n]
        result.texts.append(text)
        for name, value in scores.items():
            result.scores[name].append(value)
    return result


def article_draws(questions: Sequence[Question], resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of each question's article [N], and resamples of articles [R, G]."""
    articles = {article: number for number, article in enumerate(dict.fromkeys(one.article for one in questions))}
    return np.array([articles[one.article] for one in questions]), intervals.draw(len(articles), resamples, seed)


def scoreboard_row(
    way: Way, answered: Answered, full: Answered, none: Answered, questions: Sequence[Question], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Scores with intervals from resampling articles, beside what the full text gives (retention) and what no text gives.

    `f1_retained` is F1 over that of the full text; `nll_kept` is the share of the full text's gain in nats, over no text, that is kept.
    """
    article_N, drawn_RG = article_draws(questions, resamples, seed)
    estimates = {
        name: intervals.mean(np.array(answered.scores[name]), article_N, drawn_RG) for name in ("f1", "em", "first_token", "nll", "gap")
    }
    columns = np.array([answered.scores["f1"], full.scores["f1"], answered.scores["nll"], full.scores["nll"], none.scores["nll"]])
    counts_GM = np.zeros((article_N.max() + 1, len(columns)))
    np.add.at(counts_GM, article_N, columns.T)
    estimates["f1_retained"] = intervals.statistic(counts_GM, drawn_RG, lambda sums: _ratio(sums[0], sums[1]))
    estimates["nll_kept"] = intervals.statistic(counts_GM, drawn_RG, lambda sums: _ratio(sums[4] - sums[2], sums[4] - sums[3]))
    return {
        "label": way.label, "ratio": way.ratio, "n": len(questions), "articles": len(counts_GM),
        "positions": float(np.mean(answered.scores["positions"])), "unique_answers": len(set(answered.texts)) / max(1, len(questions)),
        **intervals.as_row(estimates),
    }  # fmt: skip


def difference(first: Answered, second: Answered, questions: Sequence[Question], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Paired differences first − second of F1 and of nats (second − first, so that positive is better), with intervals over articles."""
    article_N, drawn_RG = article_draws(questions, resamples, seed)
    pairs = {name: np.array(first.scores[name]) - np.array(second.scores[name]) for name in ("f1", "nll")}
    pairs["nll"] = -pairs["nll"]
    return intervals.as_row({name: intervals.mean(values, article_N, drawn_RG) for name, values in pairs.items()})


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if abs(whole) > 1e-9 else float("nan")
