"""What is asked of soft tokens: the terms on answers through the frozen LM, and those on the soft tokens alone.

Shape letters: C texts, N questions, P soft tokens, H hidden width, A answer tokens of all questions together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lsm.compress.prompts import AGAIN
from lsm.compress.settings import ObjectiveSettings
from lsm.connector.compressor import Compressed
from lsm.lm.contexts import Read, answer_hidden
from lsm.lm.frozen import FrozenLM
from lsm.lm.loss import frozen_cross_entropy, frozen_divergence

_CONTRASTIVE_TEMPERATURE = 0.07


def answer_terms(
    settings: ObjectiveSettings, lm: FrozenLM, student: Read, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *,
    teacher: Read | None = None, guessed: Sequence[Sequence[int]] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Cross-entropy and, with a teacher (a reading of the full texts), divergence from it, each a mean over the supervised tokens.

    Args:
        guessed: what is read in place of the answers (scheduled sampling); the targets stay.
    """
    hidden_AH = answer_hidden(lm, student, prompts, guessed or answers)
    target_A = torch.tensor([token for row in answers for token in row], device=lm.device)
    place_A = torch.tensor([place for row in answers for place in range(len(row))], device=lm.device)
    kept_A = place_A < (settings.first_tokens or int(place_A.max()) + 1)
    terms = {}
    if settings.answer:
        terms["answer"] = settings.answer * frozen_cross_entropy(hidden_AH[kept_A], lm.head_VH, target_A[kept_A]).mean()
    if settings.distill and teacher is not None:
        with torch.no_grad():
            teacher_AH = answer_hidden(lm, teacher, prompts, answers)
        heat = settings.temperature
        divergence_A = frozen_divergence(teacher_AH[kept_A] / heat, hidden_AH[kept_A] / heat, lm.head_VH)
        terms["distill"] = settings.distill * heat**2 * divergence_A.mean()
    return terms


def reconstruction(settings: ObjectiveSettings, lm: FrozenLM, read: Read, texts: Sequence[str]) -> Tensor:
    """Cross-entropy of each text's first tokens after its soft tokens."""
    targets = [row[: settings.reconstruct_tokens] for row in lm.tokens.encode([" " + text for text in texts])]
    prompts = lm.tokens.encode([AGAIN]) * len(texts)
    hidden_AH = answer_hidden(lm, read, prompts, targets)
    return frozen_cross_entropy(hidden_AH, lm.head_VH, torch.tensor([t for row in targets for t in row], device=lm.device)).mean()


def soft_terms(settings: ObjectiveSettings, made: Compressed, rms: float) -> dict[str, Tensor]:
    """The terms that need no LM."""
    terms = {}
    if settings.align:
        error = torch.cat([(a - b).pow(2).mean(-1) for a, b in zip(made.soft.tokens, made.words, strict=True)])
        terms["align"] = settings.align * error.mean() / rms**2
    mean_CH = nn.functional.normalize(torch.stack([row.mean(0) for row in made.soft.tokens]), dim=-1)
    words_CH = nn.functional.normalize(torch.stack([row.mean(0) for row in made.words]), dim=-1)
    if settings.anchor:
        terms["anchor"] = settings.anchor * (1 - (mean_CH * words_CH).sum(-1)).mean()
    if settings.contrastive:
        logits_CC = mean_CH @ words_CH.T / _CONTRASTIVE_TEMPERATURE
        terms["contrastive"] = settings.contrastive * nn.functional.cross_entropy(
            logits_CC, torch.arange(len(logits_CC), device=mean_CH.device)
        )
    if settings.diversity:
        terms["diversity"] = settings.diversity * torch.stack([_likeness(row) for row in made.soft.tokens]).mean()
    return terms


def span_term(scores: Sequence[Tensor], lm: FrozenLM, texts: Sequence[str], answers: Sequence[Sequence[str]]) -> Tensor:
    """Mean binary cross-entropy of scores [T] to whether a token stands in one of its text's answers, at the first place each has there."""
    terms = []
    for score_T, text, own, starts in zip(scores, texts, answers, lm.tokens.starts(texts), strict=True):
        first_T = torch.tensor(starts or [0])
        last_T = torch.cat([first_T[1:], torch.tensor([len(text)])])
        spans = [(text.find(answer), text.find(answer) + len(answer)) for answer in own if answer in text]
        inside_T = torch.zeros_like(first_T, dtype=torch.bool)
        for at, end in spans:
            inside_T |= (first_T < end) & (last_T > at)
        terms.append(nn.functional.binary_cross_entropy_with_logits(score_T, inside_T.to(score_T)))
    return torch.stack(terms).mean()


def guess(lm: FrozenLM, hidden_AH: Tensor, answers: Sequence[Sequence[int]], share: float, generator: torch.Generator) -> list[list[int]]:
    """The answers with each token but the last replaced, with probability `share`, by the LM's own most probable one."""
    likely = lm.logits(hidden_AH).argmax(-1).tolist()
    mixed, start = [], 0
    for row in answers:
        own = torch.rand(len(row), generator=generator) < share
        mixed.append([likely[start + i] if own[i] else token for i, token in enumerate(row)])
        start += len(row)
    return mixed


def _likeness(soft_PH: Tensor) -> Tensor:
    unit_PH = nn.functional.normalize(soft_PH, dim=-1)
    n = len(unit_PH)
    return ((unit_PH @ unit_PH.T).pow(2).sum() - n) / max(1, n * (n - 1))
