"""What soft tokens look like, and whether they have collapsed: diagnostics beside scores of what the LM answers from them.

Shape letters: C texts, P soft tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ALIKE = 0.99
_FEW_ANSWERS = 0.25


def soft_token_findings(soft: Sequence[Tensor], *, embedding_rms: float, queries: Tensor | None = None) -> dict[str, Any]:
    """Pairwise cosines within and between texts, spectrum, size beside word embeddings; `queries` are those of a cross-attention."""
    means_CH = torch.nn.functional.normalize(torch.stack([row.mean(0) for row in soft]).float(), dim=-1)
    flat_NH = torch.cat(list(soft)).float()
    variance = torch.linalg.svdvals(flat_NH - flat_NH.mean(0)).pow(2)
    share = (variance / variance.sum().clamp(min=1e-12)).cpu().numpy()
    norms = flat_NH.pow(2).mean(-1).sqrt() / embedding_rms
    return {
        "cosine_within": float(np.mean([_pairwise(row) for row in soft if len(row) > 1] or [float("nan")])),
        "cosine_between": _pairwise(means_CH),
        "effective_rank": float(np.exp(-(share * np.log(np.maximum(share, 1e-12))).sum())),
        "spectrum": [round(float(value), 4) for value in share[:8]],
        "norm_ratio": float(norms.mean()),
        "norm_ratio_largest": float(norms.max()),
        "query_similarity": None if queries is None else _pairwise(queries.float()),
    }


def collapse(findings: dict[str, Any], learned: dict[str, Any], over_shuffled: dict[str, Any] | None) -> list[str]:
    """The names of what has collapsed; empty when nothing has.

    Args:
        learned: the scoreboard row of the soft tokens.
        over_shuffled: `difference` of own soft tokens and those of another text; None where there is one text only.
    """
    named = []
    if findings["cosine_between"] > _ALIKE:
        named.append(f"vectors: soft tokens of different texts are alike (cosine {findings['cosine_between']:.3f})")
    if findings["cosine_within"] > _ALIKE:
        named.append(f"vectors: soft tokens of one text are alike (cosine {findings['cosine_within']:.3f})")
    if learned["unique_answers"] < _FEW_ANSWERS:
        named.append(f"answers: {learned['unique_answers']:.0%} of them are different from each other")
    low = None if over_shuffled is None else over_shuffled["intervals"]["nll"][0]
    if over_shuffled is not None and (low is None or low <= 0):
        named.append("use: the LM answers no better from a text's own soft tokens than from another's")
    return named


def _pairwise(rows: Tensor) -> float:
    unit = torch.nn.functional.normalize(rows.float(), dim=-1)
    n = len(unit)
    return float((unit @ unit.T).sum() - n) / max(1, n * (n - 1))
