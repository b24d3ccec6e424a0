"""Floating-point operations of the systems that `lsm bench cost` compares: two for each multiply-add of a matrix product, nothing else.

Attention counts the pairs that a position sees (under the causal diagonal, within the window), whatever a kernel computes and throws
away; a training step counts three forward passes (Kaplan et al. 2020) plus what its loss multiplies. Norms, softmax, the optimiser and
table look-ups count nothing.

Shape letters: T tokens, S sentences, D vector width, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lsm.bench.token_transformer import TokenTransformer
from lsm.latent.transformer import LatentTransformer


def token_flops(model: TokenTransformer, T: int, *, training: bool, window: int | None) -> float:
    """One document of T tokens: logits of the last position (forward), or a training step with every position's."""
    V, H = model.embedding.weight.shape
    body = 2.0 * T * linear_weights(model.blocks) + 4.0 * H * len(model.blocks) * visible_pairs(T, window)
    return 3 * body + 6.0 * H * V * (T - 1) if training else body + 2.0 * H * V


def latent_flops(model: LatentTransformer, S: int, *, training: bool) -> float:
    """One document of S sentences, the whole of it in one causal pass; a training step with MSE and InfoNCE among its sentences."""
    weights = linear_weights(model) - model.restoration.weight.numel()
    flops = 2.0 * S * weights + pair_flops(model) * visible_pairs(S)
    return 3 * flops + 6.0 * (S - 1) ** 2 * model.config.dim if training else flops


def pair_flops(model: LatentTransformer) -> float:
    """Of a pair of sentences, one seen by the other: each layer's attention, and the anchor's scores, mixing and reading."""
    layers = 4.0 * model.config.model.hidden * len(model.blocks)
    if model.anchor.kind != "attention":
        return layers
    return layers + 2.0 * (model.anchor.key.out_features + len(model.anchor.log_rate) + model.config.dim)


def encoder_flops(encoder: Any, n_tokens: Sequence[int]) -> float:
    """Texts of so many tokens each, read in both directions; 0 for an encoder that only looks vectors up."""
    network = next((part for part in vars(encoder).values() if isinstance(part, nn.Module)), None)
    if network is None:
        return 0.0
    config = next(part.config for part in network.modules() if hasattr(getattr(part, "config", None), "num_hidden_layers"))
    weights = linear_weights(network, leave_out="pooler")
    return 2.0 * weights * sum(n_tokens) + 4.0 * config.hidden_size * config.num_hidden_layers * sum(n**2 for n in n_tokens)


def writing_flops(lm: Any, prefix: int, n_tokens: Sequence[int]) -> float:
    """A frozen LM (`lsm.lm.frozen.FrozenLM`) that writes texts of so many tokens, each after a soft prefix of `prefix` positions."""
    head = lm.head_VH.numel()
    body = linear_weights(lm.model) - head
    positions = sum(prefix + n for n in n_tokens)
    pairs = sum(visible_pairs(prefix + n) for n in n_tokens)
    return 2.0 * (body * positions + head * sum(n_tokens)) + 4.0 * lm.width * lm.n_layers * pairs


def adapter_flops(adapter: Any, lm: Any, n_tokens: Sequence[int]) -> float:
    """A prefix adapter (`lsm.decode.adapter.PrefixAdapter`) that conditions texts of so many tokens: its soft words meet the whole
    vocabulary twice at every prefix position, its lexical head runs at every token."""
    lexical = 0 if adapter.lexical_head is None else linear_weights(adapter.lexical_head)
    once = linear_weights(adapter) - lexical
    soft = 0 if adapter.word_head is None else 2 * lm.head_VH.numel() * adapter.settings.prefix_length
    return 2.0 * ((once + soft) * len(n_tokens) + lexical * sum(n_tokens))


def visible_pairs(n: int, window: int | None = None) -> float:
    """Pairs of n positions of which one sees the other or itself, causally and within the `window` last ones."""
    if window is None or window >= n:
        return n * (n + 1) / 2
    return window * (window + 1) / 2 + (n - window) * window


def linear_weights(module: nn.Module, *, leave_out: str | None = None) -> int:
    """Entries of all linear layers below `module`, but for those with `leave_out` in their names."""
    return sum(
        part.weight.numel()
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and (leave_out is None or leave_out not in name)
    )
