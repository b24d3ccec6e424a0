"""Stretches of a text that become one soft token each, and means over them.

Shape letters: T states of a text, P windows, F width of a state.
"""

from __future__ import annotations

import torch
from torch import Tensor


def windows_of_kept(score_T: Tensor, n_kept: int) -> tuple[Tensor, Tensor]:
    """The places of the `n_kept` highest scores, in order, and each place's window: that of the next kept one, behind the last its own.

    A later token has read those before it, so that its state can stand for them.
    """
    kept_P = score_T.detach().topk(n_kept).indices.sort().values
    place_T = torch.arange(len(score_T), device=score_T.device)
    return kept_P, torch.searchsorted(kept_P, place_T).clamp(max=n_kept - 1)


def pooled(state_TF: Tensor, window_T: Tensor, n_windows: int, weight_T: Tensor | None = None) -> Tensor:
    """Means [P, F] of windows, or sums with weights that already add up to 1; a window without states gives zeros."""
    sums_PF = state_TF.new_zeros(n_windows, state_TF.shape[1])
    if weight_T is not None:
        return sums_PF.index_add(0, window_T, state_TF * weight_T[:, None])
    return sums_PF.index_add(0, window_T, state_TF) / torch.bincount(window_T, minlength=n_windows).clamp(min=1)[:, None]


def window_softmax(logit_T: Tensor, window_T: Tensor, n_windows: int) -> Tensor:
    """Softmax within each window; from its own maximum, so that a window far below the text's highest score keeps its weights."""
    top_P = logit_T.new_full((n_windows,), -torch.inf).scatter_reduce(0, window_T, logit_T.detach(), "amax")
    power_T = torch.exp(logit_T - top_P[window_T])
    return power_T / logit_T.new_zeros(n_windows).index_add(0, window_T, power_T)[window_T]
