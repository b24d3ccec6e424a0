"""States of a text → fewer vectors: means over windows of it, by score or all alike, attention over the whole, queries across it.

Shape letters: B texts side by side, T states of a text (S padded), P windows, F (E) width of a state, U heads, C width of one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lsm.connector.blocks import sinusoids

_HEADS = 4
_PLACES = 1024


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


class AttentionPooling(nn.Module):
    """A weighted mean of the token states, weights of its own for each quarter of the width; it starts as the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = math.gcd(_HEADS, width)
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, self.heads, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, states_BSE: Tensor, mask_BS: Tensor) -> Tensor:
        score_BSU = self.score(self.norm(states_BSE)).float().masked_fill(~mask_BS[..., None], -torch.inf)
        parts_BSUC = states_BSE.unflatten(-1, (self.heads, -1))
        return (score_BSU.softmax(1)[..., None] * parts_BSUC).sum(1).flatten(1)


class Queries(nn.Module):
    """Cross-attention: as many queries as soft tokens, told apart by where in the text they stand (Flamingo's resampler, one layer)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.query, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.out = nn.Linear(width, dim)

    def at(self, n_windows: int) -> Tensor:
        """The queries [P, F] for so many soft tokens."""
        return self.query(sinusoids(_PLACES, self.query.in_features, self.query.weight.device)[_centres(n_windows)])

    def forward(self, state_TF: Tensor, n_windows: int) -> Tensor:
        place_TF = sinusoids(_PLACES, state_TF.shape[1], state_TF.device)[_centres(len(state_TF))]
        query_PF = self.at(n_windows)
        keys_TF = self.norm(state_TF) + place_TF
        return self.out(self.attend(query_PF[None], keys_TF[None], keys_TF[None], need_weights=False)[0][0])


def _centres(n: int) -> Tensor:
    """Places of n things spread evenly over a text, on a scale of `_PLACES`."""
    return ((torch.arange(n) + 0.5) * _PLACES / n).long()
