"""One block of the latent transformer, and of the token-level one that the cost bench sets beside it.

Shape letters: B rows, S sentences, H hidden width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm.latent.attention import Sight, attend
from lsm.latent.positions import rotate
from lsm.latent.settings import ModelSettings


class Block(nn.Module):
    """Attention and SwiGLU, each after an RMSNorm and with dropout on what it adds. The residual stream stays float32."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        hidden, inner = settings.hidden, max(32, round(settings.hidden * settings.ffn_ratio / 32) * 32)
        self.heads, self.dropout = settings.heads, settings.dropout
        self.attention_norm, self.ffn_norm = nn.RMSNorm(hidden, eps=1e-6), nn.RMSNorm(hidden, eps=1e-6)
        self.query_key_value = nn.Linear(hidden, 3 * hidden, bias=False)
        self.attention_out = nn.Linear(hidden, hidden, bias=False)
        self.ffn_in = nn.Linear(hidden, 2 * inner, bias=False)
        self.ffn_out = nn.Linear(inner, hidden, bias=False)
        for linear in (self.query_key_value, self.ffn_in):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (self.attention_out, self.ffn_out):
            nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * settings.layers))

    def forward(self, x_BSH: Tensor, rotation: Tensor | None, sight: Sight) -> Tensor:
        """`rotation` of queries and keys (None = none), and `sight`: what each position may look at."""
        B, S, H = x_BSH.shape
        qkv = self.query_key_value(self.attention_norm(x_BSH)).view(B, S, 3, self.heads, H // self.heads)
        turned = qkv[:, :, :2] if rotation is None else rotate(qkv[:, :, :2], rotation)
        query_key = turned.to(_attention_dtype(qkv)).permute(2, 0, 3, 1, 4)
        value = qkv[:, :, 2].to(query_key.dtype).transpose(1, 2)
        seen = self.attend(query_key[0], query_key[1], value, sight)
        added = self.attention_out(seen.transpose(1, 2).reshape(B, S, H))
        x_BSH = x_BSH + F.dropout(added.float(), self.dropout, self.training)
        value, gate = self.ffn_in(self.ffn_norm(x_BSH)).chunk(2, -1)
        return x_BSH + F.dropout(self.ffn_out(F.silu(gate) * value).float(), self.dropout, self.training)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
        """What each position reads of the values [B, heads, S, H / heads]."""
        return attend(query, key, value, sight)


def _attention_dtype(x: Tensor) -> torch.dtype:
    # On CPUs the backward pass of the fused kernel takes twice as long in bf16 as in float32 at our sizes.
    return torch.float32 if x.device.type == "cpu" else x.dtype
