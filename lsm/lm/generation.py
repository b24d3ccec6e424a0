"""Batched generation after soft prefixes: one KV cache, finished rows dropped, repetition held down.

Shape letters: B rows, A rows still being written, T tokens, P prefix positions, H hidden width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

_MOST_LIKELY = 2048
"""Tokens among which those of `top_p` are looked for first."""
Bias = Callable[[Tensor, int, Tensor], "Tensor | None"]
"""bias(spoken_AH, n_tokens, rows_A) → bias_AH added to the final hidden states: `spoken_AH` is the sum of the input embeddings of the
`n_tokens` tokens written so far, `rows_A` says which rows of the batch are still being written."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 64
    """Longest text, end token included."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that the row already holds."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a text as the end token does, such as a line break's."""
    no_repeat_tokens: int = 3
    """No run of this many tokens occurs twice in a row's text; 0 allows repetition."""


@dataclasses.dataclass(frozen=True)
class Beside:
    """A second reading of the same LM: what stands before the text, without the prefix."""

    ids_BT: Tensor
    """Tokens int64, one row for each prefix; a single row [1, T] is shared and read once. T ≥ 1."""
    weight: float
    """λ of log p(x | prefix) + λ·log p(x | ids): a product of experts (Hinton 2002; DExperts, Liu et al. 2021, without the anti-expert)."""


@torch.no_grad()
def generate_ids(
    lm: FrozenLM,
    prefix_BPH: Tensor,
    sampling: Sampling,
    *,
    bias: Bias | Tensor | None = None,
    prompt_ids_T: Tensor | None = None,
    seeds_B: Sequence[int] | None = None,
    beside: Beside | None = None,
    lift_BV: Tensor | None = None,
    cache: Any = None,
    mask_BP: Tensor | None = None,
) -> list[list[int]]:
    """Token ids of a continuation of each prefix, the end token left out.

    Args:
        prefix_BPH: soft prefixes, all of one length.
        bias: [B, H], or a function of what has been written (see `Bias`).
        prompt_ids_T: tokens that every row reads after its prefix.
        seeds_B: of each row, so that what it draws depends on nothing beside it (see `row_seed`); needed when the temperature is above 0.
        beside: a second context whose next-token probabilities are multiplied in; when a text ends is left to the first. Twice the work.
        lift_BV: added to the logits at every step.
        cache: of what every row has read before its prefix; it is used up.
        mask_BP: which positions of cache and prefix are real, so that padding may stand anywhere but in the last one.
    """
    assert sampling.temperature == 0 or seeds_B is not None, "sampling needs seeds"
    generators = [torch.Generator().manual_seed(seed) for seed in seeds_B] if sampling.temperature and seeds_B is not None else []
    texts: list[list[int]] = [[] for _ in range(len(prefix_BPH))]
    rows_A = torch.arange(len(prefix_BPH), device=prefix_BPH.device)
    spoken_AH = torch.zeros(len(prefix_BPH), lm.width, device=prefix_BPH.device)
    written_AT = rows_A.new_empty(len(rows_A), 0)
    inputs = prefix_BPH.to(lm.dtype)
    assert prompt_ids_T is None or mask_BP is None, "a mask is of cache and prefix: put the prompt into the prefix"
    if prompt_ids_T is not None:
        inputs = torch.cat([inputs, lm.embed(prompt_ids_T)[None].expand(len(inputs), -1, -1)], dim=1)
    cache = lm.new_cache() if cache is None else cache
    mask_AT = mask_BP
    reader = _Reader(lm, beside, len(rows_A)) if beside else None
    for n_tokens in range(sampling.max_new_tokens):
        if not len(rows_A):
            break
        if isinstance(bias, Tensor):
            bias_AH = bias[rows_A]
        else:
            bias_AH = bias(spoken_AH, n_tokens, rows_A) if bias is not None else None
        with lm.fused_attention():
            logits_AV, cache = lm.step(inputs, cache, bias_AH, mask_AT)
        if lift_BV is not None:
            logits_AV += lift_BV[rows_A]
        if reader:
            logits_AV = reader.joined(logits_AV)
        if sampling.presence_penalty:
            logits_AV.scatter_(1, written_AT, logits_AV.gather(1, written_AT) - sampling.presence_penalty)
        if sampling.no_repeat_tokens:
            for place, row in enumerate(rows_A.tolist()):
                logits_AV[place, repeating(texts[row], sampling.no_repeat_tokens)] = -torch.inf
        drawn_A = torch.cat([torch.rand(1, generator=generators[row]) for row in rows_A.tolist()]) if generators else None
        chosen_A = _choose(logits_AV, sampling, drawn_A)
        going_A = chosen_A != lm.tokens.end_id
        for stop in sampling.stop_ids:
            going_A &= chosen_A != stop
        for row, token, going in zip(rows_A.tolist(), chosen_A.tolist(), going_A.tolist(), strict=True):
            if going:
                texts[row].append(token)
        if not going_A.all():
            kept = _moved_up(going_A)
            rows_A, chosen_A, spoken_AH, written_AT = rows_A[kept], chosen_A[kept], spoken_AH[kept], written_AT[kept]
            cache.batch_select_indices(kept)
            mask_AT = None if mask_AT is None else mask_AT[kept]
            if reader:
                reader.keep(kept)
        written_AT = torch.cat([written_AT, chosen_A[:, None]], dim=1)
        if mask_AT is not None:
            mask_AT = torch.cat([mask_AT, mask_AT.new_ones(len(mask_AT), 1)], dim=1)
        inputs = lm.embed(chosen_A[:, None])
        if reader:
            reader.inputs = inputs
        spoken_AH = spoken_AH + inputs[:, 0].float()
    return texts


class _Reader:
    """The second reading's state: its cache and what it reads next."""

    def __init__(self, lm: FrozenLM, beside: Beside, n_rows: int) -> None:
        self.lm, self.weight, self.cache = lm, beside.weight, lm.new_cache()
        self.inputs = lm.embed(beside.ids_BT.to(lm.device))
        self._share = n_rows if len(self.inputs) == 1 else 0

    def joined(self, logits_AV: Tensor) -> Tensor:
        """log p of the next token under both, up to a constant; the end token keeps the probability that the first gives it."""
        with self.lm.fused_attention():
            beside_AV, self.cache = self.lm.step(self.inputs, self.cache)
        if self._share > 1:
            self.cache.batch_repeat_interleave(self._share)
        self._share = 0
        end, log_AV = self.lm.tokens.end_id, torch.log_softmax(logits_AV, dim=-1)
        log_end_A = log_AV[:, end].clone()
        log_AV += self.weight * torch.log_softmax(beside_AV, dim=-1)
        log_AV[:, end] = -torch.inf
        going_on_A = torch.log1p(-log_end_A.exp().clamp(max=1 - 1e-6))
        log_AV += (going_on_A - log_AV.logsumexp(-1))[:, None]
        log_AV[:, end] = log_end_A
        return log_AV

    def keep(self, kept: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(kept)


def _moved_up(going_A: Tensor) -> Tensor:
    """Places of the rows that go on, the last of them put where others have ended: few rows of a cache move."""
    kept = torch.arange(int(going_A.sum()), device=going_A.device)
    holes = (~going_A[: len(kept)]).nonzero().squeeze(1)
    kept[holes] = len(kept) + going_A[len(kept) :].nonzero().squeeze(1)
    return kept


def repeating(ids: list[int], n: int) -> list[int]:
    """Tokens that would complete a run of `n` tokens which `ids` already holds."""
    if len(ids) < n:
        return []
    tail = ids[len(ids) - n + 1 :]
    return [ids[i + n - 1] for i in range(len(ids) - n + 1) if ids[i : i + n - 1] == tail]


def row_seed(seed: int, *parts: bytes) -> int:
    """A 63-bit seed from a run's seed and what a row is written from."""
    digest = hashlib.sha256(str(seed).encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def _choose(logits_AV: Tensor, sampling: Sampling, drawn_A: Tensor | None) -> Tensor:
    """The most probable tokens, or those at which the cumulative probability passes `drawn_A` (uniform in [0, 1))."""
    if drawn_A is None:
        return logits_AV.argmax(-1)
    probability_AV = torch.softmax(logits_AV / sampling.temperature, dim=-1)
    ordered_AV, order_AV = probability_AV.topk(min(_MOST_LIKELY, logits_AV.shape[-1]), dim=-1)
    if sampling.top_p >= 1 or (ordered_AV.sum(-1) <= sampling.top_p).any():  # sorting all takes as long as the LM
        ordered_AV, order_AV = probability_AV.sort(dim=-1, descending=True)
    if sampling.top_p < 1:
        beyond_AV = ordered_AV.cumsum(-1) - ordered_AV > sampling.top_p
        ordered_AV = ordered_AV.masked_fill(beyond_AV, 0)
    passed_AV = ordered_AV.cumsum(-1)
    place_A = (passed_AV <= drawn_A.to(passed_AV.device)[:, None] * passed_AV[:, -1:]).sum(-1)
    last_A = (ordered_AV > 0).sum(-1) - 1
    return order_AV.gather(1, torch.minimum(place_A, last_A)[:, None]).squeeze(1)
