"""The token-level transformer that the latent one is weighed against: the same blocks over tokens, full or sliding-window attention.

Shape letters: B rows, T tokens, H hidden width, V vocabulary, N positions, W window, C chunks of W tokens, A heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lsm.latent.attention import Sight
from lsm.latent.block import Block
from lsm.latent.positions import Positions
from lsm.latent.settings import ModelSettings

_LOGITS_AT_ONCE = 1 << 24
"""Entries of the logits that exist at once in a training step."""


class TokenTransformer(nn.Module):
    """Pre-norm causal transformer over tokens with tied embeddings, its blocks those of the latent transformer.

    Args:
        window: tokens that a position sees, its own included (sliding-window attention, Beltagy et al. 2020); None = all before it.
    """

    def __init__(self, settings: ModelSettings, vocabulary: int, window: int | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, settings.hidden)
        block = Block if window is None else lambda settings: WindowBlock(settings, window)
        self.blocks = nn.ModuleList(block(settings) for _ in range(settings.layers))
        self.norm = nn.RMSNorm(settings.hidden, eps=1e-6)
        self.positions = Positions(settings)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Final hidden states [B, T, H] of every token."""
        x_BTH = self.embedding(ids_BT)
        sight = Sight("sdpa", ids_BT.shape[1], ids_BT.device)
        rotation = self.positions.rotation(sight.width, None, None)
        for block in self.blocks:
            x_BTH = block(x_BTH, rotation, sight)
        return self.norm(x_BTH)

    def read(self, ids_BT: Tensor) -> Tensor:
        """Logits [B, V] of the token after the last: reading a prompt needs no others."""
        return F.linear(self(ids_BT)[:, -1], self.embedding.weight)

    def loss(self, hidden_BTH: Tensor, ids_BT: Tensor) -> Tensor:
        """Mean cross-entropy of every next token, its logits made in chunks of positions from the final hidden states."""
        return chunked_cross_entropy(hidden_BTH[:, :-1].flatten(0, 1), self.embedding.weight, ids_BT[:, 1:].flatten())


class WindowBlock(Block):
    """A block whose positions see the `window` last ones: time and memory grow with the length, not with its square."""

    def __init__(self, settings: ModelSettings, window: int) -> None:
        super().__init__(settings)
        self.window = window

    def attend(self, query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
        """As the full attention under a band of `window`, of one document a row."""
        assert sight.segment_BS is None and sight.causal and sight.slopes_A is None, "one document a row, rotary positions"
        return window_attention(query, key, value, self.window)


def window_attention(query_BATC: Tensor, key_BATC: Tensor, value_BATC: Tensor, window: int) -> Tensor:
    """Causal attention within the last `window` positions: chunks of that many attend to their own and the chunk before.

    The largest mask is [W, 2 W]; half of what is computed lies outside the window and is thrown away.
    Arguments and result are [B, A, T, ·].
    """
    T = query_BATC.shape[2]
    if window >= T:
        return F.scaled_dot_product_attention(query_BATC, key_BATC, value_BATC, is_causal=True)
    first = F.scaled_dot_product_attention(query_BATC[:, :, :window], key_BATC[:, :, :window], value_BATC[:, :, :window], is_causal=True)
    # The later chunks stand beside the rows, the last one filled up with zeros that causality hides from what is kept.
    fill = -T % window
    own = [F.pad(x, (0, 0, 0, fill)).unflatten(2, (-1, window)).transpose(1, 2) for x in (query_BATC, key_BATC, value_BATC)]
    query = own[0][:, 1:].flatten(0, 1)
    key, value = (torch.cat([x[:, :-1], x[:, 1:]], dim=3).flatten(0, 1) for x in own[1:])
    places = torch.arange(window, device=query.device)
    distance_WW = window + places[:, None] - torch.arange(2 * window, device=query.device)
    later = F.scaled_dot_product_attention(query, key, value, attn_mask=(distance_WW >= 0) & (distance_WW < window))
    later = later.unflatten(0, (len(query_BATC), -1)).transpose(1, 2).flatten(2, 3)
    return torch.cat([first, later], dim=2)[:, :, :T]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Both gradients are made in the forward pass, chunk by chunk (as Liger-Kernel's fused linear cross-entropy, Hsu et al. 2024)."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, head_VH: Tensor, targets_N: Tensor, rows: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        hidden_gradient_NH, head_gradient_VH = torch.empty_like(hidden_NH), torch.zeros_like(head_VH)
        for start in range(0, len(hidden_NH), rows):
            hidden, targets = hidden_NH[start : start + rows], targets_N[start : start + rows]
            logits = F.linear(hidden, head_VH).float()
            normaliser = torch.logsumexp(logits, dim=-1)
            total += (normaliser - logits.gather(1, targets[:, None]).squeeze(1)).sum()
            gradient = logits.sub_(normaliser[:, None]).exp_()
            gradient.scatter_add_(1, targets[:, None], torch.full_like(gradient[:, :1], -1.0))
            hidden_gradient_NH[start : start + rows] = gradient @ head_VH
            head_gradient_VH += gradient.T @ hidden
        ctx.save_for_backward(hidden_gradient_NH, head_gradient_VH)
        return total / len(hidden_NH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient_NH, head_gradient_VH = ctx.saved_tensors
        scale = gradients[0] / len(hidden_gradient_NH)
        return hidden_gradient_NH * scale, head_gradient_VH * scale, None, None


def chunked_cross_entropy(hidden_NH: Tensor, head_VH: Tensor, targets_N: Tensor, *, rows: int | None = None) -> Tensor:
    """Mean cross-entropy in nats through a trained output layer, float32, without ever keeping [N, V] logits.

    Args:
        rows: positions whose logits exist at once; None = as many as make 2²⁴ entries.
    """
    return _ChunkedCrossEntropy.apply(hidden_NH, head_VH, targets_N, rows or max(1, _LOGITS_AT_ONCE // len(head_VH)))
