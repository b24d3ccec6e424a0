"""The fused loss gives the plain loss's value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from lsm.lm import loss as fused


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(700, 16, generator=generator)
    head_VH = torch.randn(50, 16, generator=generator)
    return hidden_NH, head_VH, torch.randint(50, (700,), generator=generator)


def test_cross_entropy_and_gradient_equal_the_plain_ones(problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    hidden_NH, head_VH, targets_N = problem
    weights_N = torch.rand(len(targets_N))
    plain_NH, fused_NH = hidden_NH.clone().requires_grad_(), hidden_NH.clone().requires_grad_()
    plain_N = cross_entropy(plain_NH @ head_VH.T, targets_N, reduction="none")
    fused_N = fused.frozen_cross_entropy(fused_NH, head_VH, targets_N)
    (plain_N * weights_N).sum().backward()
    (fused_N * weights_N).sum().backward()
    torch.testing.assert_close(fused_N, plain_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused_NH.grad, plain_NH.grad, rtol=1e-4, atol=1e-5)


def test_bf16_head_stays_near_float32(problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    hidden_NH, head_VH, targets_N = problem
    half_NH = hidden_NH.bfloat16().requires_grad_()
    loss_N = fused.frozen_cross_entropy(half_NH, head_VH.bfloat16(), targets_N)
    loss_N.mean().backward()
    assert loss_N.dtype == torch.float32 and half_NH.grad is not None and half_NH.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss_N, cross_entropy(hidden_NH @ head_VH.T, targets_N, reduction="none"), rtol=0.03, atol=0.1)


def test_logsumexp_with_offset_gives_a_bag_cross_entropy(problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    hidden_NH, head_VH, _ = problem
    offset_V = torch.randn(50)
    target_NV = torch.softmax(torch.randn(700, 50), dim=-1)
    plain_NH, fused_NH = hidden_NH.clone().requires_grad_(), hidden_NH.clone().requires_grad_()
    plain_N = cross_entropy(plain_NH @ head_VH.T + offset_V, target_NV, reduction="none")
    fused_N = fused.frozen_logsumexp(fused_NH, head_VH, offset_V) - (fused_NH * (target_NV @ head_VH)).sum(1) - target_NV @ offset_V
    plain_N.sum().backward()
    fused_N.sum().backward()
    torch.testing.assert_close(fused_N, plain_N, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused_NH.grad, plain_NH.grad, rtol=1e-4, atol=1e-4)


def test_mean_head_row_is_the_softmax_mean(problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    hidden_NH, head_VH, _ = problem
    normaliser_N, mean_NH = fused.frozen_mean(hidden_NH.requires_grad_(), head_VH)
    torch.testing.assert_close(mean_NH, torch.softmax(hidden_NH @ head_VH.T, -1) @ head_VH)
    assert not mean_NH.requires_grad and normaliser_N.requires_grad


def test_a_head_that_wants_a_gradient_is_refused(problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    hidden_NH, head_VH, targets_N = problem
    with pytest.raises(AssertionError, match="frozen"):
        fused.frozen_cross_entropy(hidden_NH, head_VH.requires_grad_(), targets_N)
