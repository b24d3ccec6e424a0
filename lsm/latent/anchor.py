"""What the head corrects: a learned mixture of the strong simple predictors of the next vector.

Shape letters: B rows, S sentences, D vector width, H hidden width, K members of the mixture.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

BEST_DECAY = 0.5
"""Decay of the exponential mean that the untrained mixture equals: the best simple control on Wikipedia and on speeches (docs/LOG.md)."""
_LEARNED_DECAYS = (0.3, BEST_DECAY, 0.7, 0.9)


class Anchor(nn.Module):
    """Predicts s+1 as Σ_k w_k · mean_k(z_1 … z_s) within the document.

    Members: the last vector (decay 0), exponential means with learned decays, the running mean (decay 1); their weights start at the best
    member alone and are corrected at each position by a gate on the hidden state that starts at zero.
    """

    def __init__(self, kind: Literal["mixture", "last", "none"], hidden: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "mixture":
            self.decay_logit = nn.Parameter(torch.tensor([math.log(d / (1 - d)) for d in _LEARNED_DECAYS]))
            weight_K = torch.zeros(len(_LEARNED_DECAYS) + 2)
            weight_K[1 + _LEARNED_DECAYS.index(BEST_DECAY)] = 1.0
            self.weight = nn.Parameter(weight_K)
            self.gate = nn.Linear(hidden, len(weight_K))
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, z_BSD: Tensor, hidden_BSH: Tensor, causal_BSS: Tensor) -> Tensor:
        """The anchor of each position, in raw space [B, S, D]; `causal_BSS` is true where position s may see position t."""
        if self.kind == "none":
            return torch.zeros_like(z_BSD)
        if self.kind == "last":
            return z_BSD
        gate_BSK = self.gate(hidden_BSH).float() + self.weight
        with torch.autocast(z_BSD.device.type, enabled=False):
            return _mixed_weights(self.decay_logit.float(), gate_BSK, causal_BSS) @ z_BSD.float()


def exponential_mean(z_BSD: Tensor, causal_BSS: Tensor, decay: float) -> Tensor:
    """Mean of what has been read, weighted by decay^(s − t): the control that the mixture starts from."""
    return _weights(torch.tensor([math.log(decay)], device=z_BSD.device), causal_BSS)[0] @ z_BSD


def _mixed_weights(decay_logit: Tensor, gate_BSK: Tensor, causal_BSS: Tensor) -> Tensor:
    # All members are linear in z, so their weights are mixed first and one product with z is enough.
    log_decay = torch.cat([nn.functional.logsigmoid(decay_logit), decay_logit.new_zeros(1)])  # the last one: decay 1, the running mean
    weights_KBSS = _weights(log_decay, causal_BSS)
    mixed_BSS = torch.einsum("bsk,kbst->bst", gate_BSK[..., 1:], weights_KBSS)
    return mixed_BSS + torch.diag_embed(gate_BSK[..., 0])


def _weights(log_decay_K: Tensor, causal_BSS: Tensor) -> Tensor:
    """decay_k^(s − t) where t may be seen, each row summing to one: [K, B, S, S]."""
    places = torch.arange(causal_BSS.shape[-1], device=causal_BSS.device, dtype=log_decay_K.dtype)
    distance_SS = (places[:, None] - places[None]).clamp(min=0)
    weights_KBSS = (log_decay_K[:, None, None] * distance_SS).exp()[:, None] * causal_BSS
    return weights_KBSS / weights_KBSS.sum(-1, keepdim=True)
