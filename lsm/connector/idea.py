"""The idea vector of a reasoning stack: the map that makes it of a pooled vector, and the middles, which start as no change at all.

Shape letters: B rows, E encoder width, D idea width, U slots, H width inside a middle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lsm.connector.blocks import zeroed
from lsm.connector.settings import MiddleSettings


class IdeaMap(nn.Module):
    """Pooled vector → idea: the identity, or an orthogonal map where widths differ, and an MLP beside it that starts at zero."""

    def __init__(self, width: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if width == latent and not hidden else nn.Linear(width, latent, bias=False)
        if isinstance(self.skip, nn.Linear):
            nn.init.eye_(self.skip.weight) if width == latent else nn.init.orthogonal_(self.skip.weight)
        self.mlp = None
        if hidden:
            self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), zeroed(nn.Linear(hidden, latent)))

    def forward(self, pooled_BE: Tensor) -> Tensor:
        direction_BE = nn.functional.normalize(pooled_BE, dim=-1) * math.sqrt(pooled_BE.shape[-1])
        return self.skip(direction_BE) if self.mlp is None else self.skip(direction_BE) + self.mlp(direction_BE)


class _Mlp(nn.Module):
    def __init__(self, settings: MiddleSettings, width: int) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, settings.hidden), nn.GELU(), zeroed(nn.Linear(settings.hidden, width)))
            for _ in range(settings.layers)
        ]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x_BD: Tensor) -> Tensor:
        y_BD = x_BD
        for block in self.blocks:
            y_BD = y_BD + block(y_BD)
        return y_BD - x_BD


class _SlotTransformer(nn.Module):
    def __init__(self, settings: MiddleSettings, width: int) -> None:
        super().__init__()
        self.slots, hidden = settings.slots, settings.hidden
        self.inlet, self.outlet = nn.Linear(width // self.slots, hidden), zeroed(nn.Linear(hidden, width // self.slots))
        self.place = nn.Parameter(torch.randn(self.slots, hidden) * 0.02)
        heads = math.gcd(8, hidden)
        layer = nn.TransformerEncoderLayer(hidden, heads, 2 * hidden, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(hidden), enable_nested_tensor=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        states_BUH = self.inlet(x_BD.unflatten(-1, (self.slots, -1))) + self.place
        return self.outlet(self.layers(states_BUH)).flatten(1)


class _Gru(nn.Module):
    def __init__(self, settings: MiddleSettings, width: int) -> None:
        super().__init__()
        self.steps = settings.steps
        self.start, self.cell = nn.Linear(width, settings.hidden), nn.GRUCell(width, settings.hidden)
        self.outlet = zeroed(nn.Linear(settings.hidden, width))

    def forward(self, x_BD: Tensor) -> Tensor:
        state_BH, change_BD = self.start(x_BD).tanh(), torch.zeros_like(x_BD)
        for _ in range(self.steps):
            state_BH = self.cell(x_BD + change_BD, state_BH)
            change_BD = self.outlet(state_BH)
        return change_BD


class _Nothing(nn.Module):
    def forward(self, x_BD: Tensor) -> Tensor:
        return torch.zeros_like(x_BD)


def middle_model(settings: MiddleSettings, width: int) -> nn.Module:
    """The network that gives the change [B, D] of ideas [B, D]; zeros at first, for the identity always."""
    if settings.kind == "identity":
        return _Nothing()
    return {"mlp": _Mlp, "transformer": _SlotTransformer, "gru": _Gru}[settings.kind](settings, width)
