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


def test_divergence_and_its_gradient_are_those_of_the_full_logits(problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    teacher_NH, head_VH, _ = problem
    student_NH = torch.randn(teacher_NH.shape, generator=torch.Generator().manual_seed(1))
    plain_NH, fused_NH = student_NH.clone().requires_grad_(), student_NH.clone().requires_grad_()
    log_p_NV, log_q_NV = (torch.log_softmax(hidden_NH @ head_VH.T, -1) for hidden_NH in (teacher_NH, plain_NH))
    plain_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(1)
    fused_N = fused.frozen_divergence(teacher_NH.clone().requires_grad_(), fused_NH, head_VH)
    torch.testing.assert_close(fused_N, plain_N, rtol=1e-4, atol=1e-4)
    assert (fused_N > 0).all()
    weight_N = torch.arange(1.0, len(plain_N) + 1)
    (plain_N * weight_N).sum().backward()
    (fused_N * weight_N).sum().backward()
    torch.testing.assert_close(fused_NH.grad, plain_NH.grad, rtol=1e-4, atol=1e-3)


def test_equal_distributions_do_not_diverge(problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    hidden_NH, head_VH, _ = problem
    same_NH = hidden_NH.clone().requires_grad_()
    loss_N = fused.frozen_divergence(hidden_NH, same_NH, head_VH)
    loss_N.sum().backward()
    assert loss_N.detach().abs().max() == 0 and same_NH.grad is not None and same_NH.grad.abs().max() == 0


def test_row_means() -> None:
    mask_BT = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    torch.testing.assert_close(fused.row_means(torch.tensor([1.0, 3.0, 5.0]), mask_BT), torch.tensor([2.0, 0.0, 5.0]))


def test_a_head_that_wants_a_gradient_is_refused(problem: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    hidden_NH, head_VH, targets_N = problem
    with pytest.raises(AssertionError, match="frozen"):
        fused.frozen_cross_entropy(hidden_NH, head_VH.requires_grad_(), targets_N)
