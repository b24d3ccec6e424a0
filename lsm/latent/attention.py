"""How attention is computed: SDPA anywhere, xformers or FlexAttention on CUDA; who may look at whom is said once a pass.

Shape letters: B rows, S sentences, A heads, C channels of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lsm.errors import UserError
from lsm.latent.settings import Attention


@dataclass
class Sight:
    """Who may look at whom in rows of width S, and what distance costs; its masks are made when the first layer asks for them."""

    kind: Attention
    width: int
    device: torch.device
    segment_BS: Tensor | None = None
    """Attention stays inside equal numbers; None = one document a row."""
    causal: bool = True
    slopes_A: Tensor | None = None
    """Scores fall by slope × distance (`positions.alibi_slopes`)."""

    @cached_property
    def visible_BSS(self) -> Tensor:
        """True where position s (second to last) may see position t (last); B = 1 without segments."""
        if self.segment_BS is None:
            same_BSS = torch.ones(1, self.width, self.width, dtype=torch.bool, device=self.device)
        else:
            same_BSS = self.segment_BS[:, :, None] == self.segment_BS[:, None]
        return same_BSS.tril() if self.causal else same_BSS

    @cached_property
    def dense(self) -> Tensor | None:
        """The mask of SDPA: bool [B, 1, S, S], with slopes float32 [B, A, S, S]; None where its causal flag says it all."""
        if self.slopes_A is None:
            return None if self.causal and self.segment_BS is None else self.visible_BSS[:, None]
        place_S = torch.arange(self.width, device=self.device)
        bias_ASS = -self.slopes_A[:, None, None] * (place_S[:, None] - place_S).abs()
        return torch.where(self.visible_BSS[:, None], bias_ASS, -torch.inf)

    @cached_property
    def blocks(self) -> Any:
        """The block mask of FlexAttention."""
        from torch.nn.attention.flex_attention import create_block_mask

        segment_BS, causal = self.segment_BS, self.causal

        def visible(b: Tensor, head: Tensor, s: Tensor, t: Tensor) -> Tensor:
            seen = s >= t if causal else s == s
            return seen if segment_BS is None else seen & (segment_BS[b, s] == segment_BS[b, t])

        rows = None if segment_BS is None else len(segment_BS)
        return create_block_mask(visible, rows, None, self.width, self.width, device=str(self.device))


def require(kind: Attention, device: torch.device) -> None:
    """Raise `UserError`, in one line, unless this attention can run here."""
    if kind == "sdpa":
        return
    if device.type != "cuda":
        raise UserError(f"model.attention {kind} runs on CUDA only, and the device is {device}; take model.attention sdpa")
    try:
        _xformers() if kind == "xformers" else _flex_attention(device.type)
    except ImportError as error:
        way_out = "pip install xformers" if kind == "xformers" else "update torch"
        raise UserError(f"model.attention {kind} cannot be imported here ({error}); {way_out}, or take model.attention sdpa") from error


def attend(query_BASC: Tensor, key_BASC: Tensor, value_BASC: Tensor, sight: Sight) -> Tensor:
    """What each position reads, [B, A, S, C]; all three ways agree up to rounding."""
    with torch.autocast(query_BASC.device.type, enabled=False):  # which would cast back to its own choice
        if sight.kind == "flex":
            slopes_A = sight.slopes_A

            def fall(score: Tensor, b: Tensor, head: Tensor, s: Tensor, t: Tensor) -> Tensor:
                return score if slopes_A is None else score - slopes_A[head] * (s - t).abs()

            flex = _flex_attention(query_BASC.device.type)
            return flex(query_BASC, key_BASC, value_BASC, score_mod=fall, block_mask=sight.blocks)
        if sight.kind == "xformers":
            return _by_xformers(query_BASC, key_BASC, value_BASC, sight)
        mask = sight.dense
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query_BASC.dtype)
        return F.scaled_dot_product_attention(query_BASC, key_BASC, value_BASC, attn_mask=mask, is_causal=mask is None)


def _by_xformers(query_BASC: Tensor, key_BASC: Tensor, value_BASC: Tensor, sight: Sight) -> Tensor:
    """Documents as blocks of one long row (no mask in memory); with slopes a dense bias."""
    attention, masks = _xformers()
    by_place = [x.transpose(1, 2) for x in (query_BASC, key_BASC, value_BASC)]
    if sight.slopes_A is not None:
        # The kernel wants its bias' rows aligned to eight.
        assert sight.dense is not None
        padded = F.pad(sight.dense.to(query_BASC.dtype), (0, -sight.width % 8))[..., : sight.width]
        bias = padded.expand(len(query_BASC), query_BASC.shape[1], -1, -1)
        return attention(*by_place, attn_bias=bias).transpose(1, 2)
    segment_BS = sight.segment_BS if sight.segment_BS is not None else query_BASC.new_zeros(len(query_BASC), sight.width)
    mask = (masks.BlockDiagonalCausalMask if sight.causal else masks.BlockDiagonalMask).from_seqlens(run_lengths(segment_BS))
    seen = attention(*(x.flatten(0, 1)[None] for x in by_place), attn_bias=mask)
    return seen.view(by_place[0].shape).transpose(1, 2)


def run_lengths(segment_BS: Tensor) -> list[int]:
    """Lengths of the runs of equal numbers, row after row; a row's end ends a run."""
    return [len(list(run)) for row in segment_BS.tolist() for _, run in itertools.groupby(row)]


@cache
def _flex_attention(device_type: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


@cache
def _xformers() -> tuple[Callable[..., Tensor], Any]:
    from xformers.ops import fmha, memory_efficient_attention  # ty: ignore[import-not-found]

    return memory_efficient_attention, fmha.attn_bias
