"""Small parts that connectors are put together from: layers that start at zero, a residual MLP, a score, places, a codebook.

Shape letters: T states of a text, P windows, F width of a state, D width of a code, S states side by side in a code, N codes of all texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with weights and bias zero: what it adds starts as nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """x + size(x) · MLP(norm(x)), zero at first; a code of several states side by side has its size and norm state by state."""

    def __init__(self, width: int, hidden: int, n_states: int = 1) -> None:
        super().__init__()
        self.n_states = n_states
        self.norm, self.up, self.down = nn.LayerNorm(width // n_states), nn.Linear(width, hidden), zeroed(nn.Linear(hidden, width))

    def forward(self, x_PD: Tensor) -> Tensor:
        states_PSF = x_PD.unflatten(1, (self.n_states, -1))
        size_PS1 = states_PSF.detach().pow(2).mean(2, keepdim=True).sqrt()
        added_PD = self.down(nn.functional.gelu(self.up(self.norm(states_PSF).flatten(1))))
        return x_PD + (size_PS1 * added_PD.unflatten(1, (self.n_states, -1))).flatten(1)


class Score(nn.Sequential):
    """What each state [T, F] of a text is worth, [T]: linear, or through a hidden layer that also sees `reach` states on either side; 0 at
    first."""

    def __init__(self, width: int, hidden: int, reach: int) -> None:
        layers: list[nn.Module] = [nn.Linear((2 * reach + 1) * width, hidden), nn.GELU()] if hidden else []
        super().__init__(*layers, zeroed(nn.Linear(hidden or width, 1)))
        self.reach = reach

    def forward(self, state_TF: Tensor) -> Tensor:  # ty: ignore[lost-keyword-for-regular-parameter]
        # Not a convolution: a GPU would multiply that in TF32 and keep other tokens.
        wide_LF = nn.functional.pad(state_TF, (0, 0, self.reach, self.reach))
        near_TFR = torch.stack([wide_LF[at : at + len(state_TF)] for at in range(2 * self.reach + 1)], dim=-1)
        return super().forward(near_TFR.flatten(1))[:, 0]


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Sinusoids [length, width] of places 0, 1, … (Vaswani et al. 2017)."""
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]


def quantised(codes: Sequence[Tensor], codebook: nn.Embedding) -> tuple[list[Tensor], Tensor]:
    """Nearest entries, gradients straight through, and codebook plus commitment loss (weights 1 and 0.25)."""
    flat_ND = torch.cat(list(codes))
    nearest_ND = codebook(torch.cdist(flat_ND.detach(), codebook.weight.detach()).argmin(1))
    loss = (nearest_ND - flat_ND.detach()).pow(2).mean() + 0.25 * (nearest_ND.detach() - flat_ND).pow(2).mean()
    through_ND = flat_ND + (nearest_ND - flat_ND).detach()
    return list(through_ND.split([len(code) for code in codes])), loss
