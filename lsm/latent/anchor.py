"""What the head corrects: a learned reading of the vectors themselves, which starts as the best simple predictor of the next one.

Shape letters: B rows, S sentences, D vector width, H hidden width, A heads of the anchor, C channels of a head.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

BEST_DECAY = 0.5
"""Decay of the exponential mean that the untrained anchor equals: the best simple control on Wikipedia and on speeches (docs/LOG.md)."""
_DECAYS = (BEST_DECAY, 0.8, 0.95, 0.3)
_CHANNELS = 32
_RANK = 32


class Anchor(nn.Module):
    """Predicts s+1 as a weighted sum of the very vectors read, z_1 … z_s of the document, bent by a map of low rank.

    Each head attends to the vectors read as a pointer network does (Vinyals et al. 2015): queries and keys come from the hidden
    state, the values are the raw vectors, so nothing of a sentence's detail has to pass through weights that could memorise
    it. Its scores start at the head's own decay with distance (as ALiBi, Press et al. 2022) and are corrected by what the
    sentences say. A gate on the hidden state mixes the heads and the last vector; it starts at the first head alone, the
    exponential mean `BEST_DECAY`.
    """

    def __init__(self, kind: Literal["attention", "last", "none"], hidden: int, dim: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "attention":
            return
        heads = len(_DECAYS)
        self.log_rate = nn.Parameter(torch.tensor([math.log(-math.log(decay)) for decay in _DECAYS]))
        self.query = nn.Linear(hidden, heads * _CHANNELS, bias=False)
        self.key = nn.Linear(hidden, heads * _CHANNELS, bias=False)
        self.salience = nn.Linear(hidden, heads, bias=False)
        self.weight = nn.Parameter(torch.tensor([1.0] + [0.0] * heads))
        self.gate = nn.Linear(hidden, heads + 1)
        self.down = nn.Linear(dim, _RANK, bias=False)
        self.up = nn.Linear(_RANK, dim, bias=False)
        for linear in (self.query, self.salience, self.gate, self.up):
            nn.init.zeros_(linear.weight)
        nn.init.zeros_(self.gate.bias)
        nn.init.normal_(self.key.weight, std=hidden**-0.5)
        nn.init.normal_(self.down.weight, std=dim**-0.5)

    def forward(self, z_BSD: Tensor, hidden_BSH: Tensor, causal_BSS: Tensor) -> Tensor:
        """The anchor of each position, in raw space [B, S, D]; `causal_BSS` is true where position s may see position t."""
        if self.kind == "none":
            return torch.zeros_like(z_BSD)
        if self.kind == "last":
            return z_BSD
        weight_BSA = self.gate(hidden_BSH).float() + self.weight
        query_BASC, key_BASC = (project(hidden_BSH).unflatten(-1, (-1, _CHANNELS)).transpose(1, 2) for project in (self.query, self.key))
        score_BASS = (query_BASC @ key_BASC.transpose(-1, -2)).float() / math.sqrt(_CHANNELS)
        score_BASS = score_BASS + self.salience(hidden_BSH).float().transpose(1, 2)[:, :, None]
        with torch.autocast(z_BSD.device.type, enabled=False):
            score_BASS = score_BASS - self.log_rate.float().exp()[:, None, None] * _distance(causal_BSS)
            attention_BASS = score_BASS.masked_fill(~causal_BSS[:, None], -torch.inf).softmax(-1)
            # All heads are linear in z, so their weights are mixed first and one product with z is enough.
            mixed_BSS = torch.einsum("bsa,bast->bst", weight_BSA[..., :-1], attention_BASS)
            read_BSD = mixed_BSS @ z_BSD.float() + weight_BSA[..., -1:] * z_BSD
            return read_BSD + self.up(self.down(read_BSD))


def exponential_mean(z_BSD: Tensor, causal_BSS: Tensor, decay: float) -> Tensor:
    """Mean of what has been read, weighted by decay^(s − t): the control that the anchor starts from."""
    weights_BSS = decay ** _distance(causal_BSS) * causal_BSS
    return (weights_BSS / weights_BSS.sum(-1, keepdim=True)) @ z_BSD


def _distance(causal_BSS: Tensor) -> Tensor:
    """s − t where it is not negative, float32 [S, S]."""
    places = torch.arange(causal_BSS.shape[-1], device=causal_BSS.device, dtype=torch.float32)
    return (places[:, None] - places[None]).clamp(min=0)
