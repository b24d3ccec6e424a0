"""Cross-entropy and divergence through a frozen output layer without ever keeping [N, V] logits: the gradient is made in the forward pass.

Shape letters: N rows (positions of all sentences together), H hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS_PER_CHUNK = 512
"""Rows whose logits exist at once. Fewer rows re-read the output layer more often, more rows leave the caches (measured on CPU)."""


class _FrozenHead(torch.autograd.Function):
    """log-sum-exp of each row's logits, less its target's logit where targets are given, and the mean head row under its softmax."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        targets_N: Tensor | None,
        offset_V: Tensor | None,
        means: bool,
        right_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        loss_N = torch.empty(len(hidden_NH), dtype=torch.float32, device=hidden_NH.device)
        mean_NH = torch.empty_like(hidden_NH) if means or hidden_NH.requires_grad else None
        for start in range(0, len(hidden_NH), ROWS_PER_CHUNK):
            rows = slice(start, start + ROWS_PER_CHUNK)
            logits = torch.nn.functional.linear(hidden_NH[rows].to(head_VH.dtype), head_VH).float()
            if offset_V is not None:
                logits += offset_V
            normaliser = torch.logsumexp(logits, dim=-1)
            loss_N[rows] = normaliser
            if targets_N is not None:
                loss_N[rows] -= logits.gather(1, targets_N[rows, None]).squeeze(1)
                if right_N is not None:
                    right_N[rows] = logits.argmax(-1) == targets_N[rows]
            if mean_NH is not None:
                probabilities = logits.sub_(normaliser[:, None]).exp_()
                mean_NH[rows] = (probabilities.to(head_VH.dtype) @ head_VH).to(mean_NH.dtype)
        if hidden_NH.requires_grad:
            assert mean_NH is not None
            ctx.save_for_backward(mean_NH if targets_N is None else mean_NH - head_VH[targets_N])
        if means:
            ctx.mark_non_differentiable(mean_NH)
        return loss_N, mean_NH if means else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient_NH,) = ctx.saved_tensors
        return (gradient_NH * gradients[0][:, None]).to(gradient_NH.dtype), None, None, None, None, None


def frozen_cross_entropy(hidden_NH: Tensor, head_VH: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy in nats of each row against its target token; differentiable in `hidden_NH` only.

    Args:
        hidden_NH: final hidden states, any float type; logits are multiplied in the head's type and summed in float32.
        head_VH: the output layer's weight, which must not require a gradient.
        targets_N: token ids.

    Returns:
        loss_N in float32.
    """
    assert not head_VH.requires_grad, "the output layer must be frozen: its gradient is not computed"
    return _FrozenHead.apply(hidden_NH, head_VH, targets_N, None, False)[0]


def frozen_prediction(hidden_NH: Tensor, head_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """`frozen_cross_entropy` [N], and whether each target is the most probable token, bool [N]."""
    assert not head_VH.requires_grad, "the output layer must be frozen: its gradient is not computed"
    right_N = torch.empty(len(hidden_NH), dtype=torch.bool, device=hidden_NH.device)
    return _FrozenHead.apply(hidden_NH, head_VH, targets_N, None, False, right_N)[0], right_N


def frozen_logsumexp(hidden_NH: Tensor, head_VH: Tensor, offset_V: Tensor | None = None) -> Tensor:
    """log Σ_v exp(hidden · head_v + offset_v) of each row [N] float32; differentiable in `hidden_NH` only.

    With it the cross-entropy of a row against any distribution q over the vocabulary is
    `frozen_logsumexp(h) − h · Σ_v q_v head_v` (plus a constant), whatever the number of tokens that carry weight.
    """
    assert not head_VH.requires_grad, "the output layer must be frozen: its gradient is not computed"
    return _FrozenHead.apply(hidden_NH, head_VH, None, offset_V, False)[0]


def frozen_mean(hidden_NH: Tensor, head_VH: Tensor, offset_V: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`frozen_logsumexp` [N] and, without gradient, the mean head row Σ_v p_v head_v [N, H] under each row's softmax.

    That mean is the gradient of the log-sum-exp, so it costs nothing more.
    """
    assert not head_VH.requires_grad, "the output layer must be frozen: its gradient is not computed"
    return _FrozenHead.apply(hidden_NH, head_VH, None, offset_V, True)


def frozen_divergence(teacher_NH: Tensor, student_NH: Tensor, head_VH: Tensor) -> Tensor:
    """KL(p‖q) of each row [N] in nats, float32: p = softmax(head · teacher), q = softmax(head · student). Differentiable in `student_NH`.

    With A the log-sum-exp of the logits and m = Σ_v p_v head_v the teacher's mean head row, it is A(student) − A(teacher) −
    (student − teacher) · m: the Bregman divergence of A.
    """
    with torch.no_grad():
        teacher_N, mean_NH = frozen_mean(teacher_NH.float(), head_VH)
    return frozen_logsumexp(student_NH.float(), head_VH) - teacher_N - ((student_NH.float() - teacher_NH.float()) * mean_NH).sum(-1)


def row_means(loss_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Means [B] of what was computed for the places of `mask_BT` alone, row by row; 0 where a row has none."""
    lengths_B = mask_BT.sum(1)
    rows_N = torch.repeat_interleave(torch.arange(len(mask_BT), device=loss_N.device), lengths_B)
    return torch.zeros(len(mask_BT), device=loss_N.device).index_add(0, rows_N, loss_N) / lengths_B.clamp(min=1)
