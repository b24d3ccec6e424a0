"""Promises of attention: every way gives what a plain softmax gives, and what cannot run here is refused in one line."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lsm.errors import UserError
from lsm.latent import attention
from lsm.latent.attention import Sight, attend
from lsm.latent.positions import alibi_slopes

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, 0, 0]])
CPU = torch.device("cpu")


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sight: Sight) -> torch.Tensor:
    score = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    places = torch.arange(query.shape[2])
    if sight.slopes_A is not None:
        score = score - sight.slopes_A[:, None, None] * (places[:, None] - places).abs()
    seen = torch.ones(len(query), 1, len(places), len(places), dtype=torch.bool)
    if sight.segment_BS is not None:
        seen &= (sight.segment_BS[:, :, None] == sight.segment_BS[:, None])[:, None]
    if sight.causal:
        seen &= places[:, None] >= places
    return score.masked_fill(~seen, -torch.inf).softmax(-1) @ value


@pytest.fixture
def xformers_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two things that are used of xformers, by its documented interface: block masks from lengths, and attention over [B, S, A, C]."""

    class Blocks:
        causal = False

        @classmethod
        def from_seqlens(cls, lengths: list[int]) -> torch.Tensor:
            mask = torch.block_diag(*(torch.ones(n, n) for n in lengths)).bool()
            return torch.zeros(mask.shape).masked_fill(~(mask.tril() if cls.causal else mask), -torch.inf)

    class CausalBlocks(Blocks):
        causal = True

    def attention_over_rows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_bias: torch.Tensor) -> torch.Tensor:
        by_head = [x.transpose(1, 2) for x in (query, key, value)]
        score = by_head[0] @ by_head[1].transpose(-1, -2) / query.shape[-1] ** 0.5 + attn_bias
        return (score.softmax(-1) @ by_head[2]).transpose(1, 2)

    ops = ModuleType("xformers.ops")
    ops.fmha = SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=Blocks, BlockDiagonalCausalMask=CausalBlocks))  # type: ignore
    ops.memory_efficient_attention = attention_over_rows  # type: ignore
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    attention._xformers.cache_clear()
    yield
    attention._xformers.cache_clear()


@pytest.mark.parametrize("kind", ["sdpa", "flex", "xformers"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.usefixtures("xformers_stand_in")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_all_ways_agree(kind: attention.Attention, causal: bool, segments: torch.Tensor | None, biased: bool) -> None:
    query, key, value = torch.randn(3, 2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    sight = Sight(kind, 6, CPU, segments, causal, torch.tensor(alibi_slopes(3)) if biased else None)
    torch.testing.assert_close(attend(query, key, value, sight), plain(query, key, value, sight), rtol=1e-4, atol=1e-5)


def test_runs_end_with_their_row() -> None:
    assert attention.run_lengths(SEGMENTS) == [3, 2, 1, 6]
    assert attention.run_lengths(torch.tensor([[0, 0], [0, 1]])) == [2, 1, 1]


def test_what_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attention.require("sdpa", CPU)
    for kind in ("flex", "xformers"):
        with pytest.raises(UserError, match=f"attention {kind} runs on CUDA only"):
            attention.require(kind, CPU)
    monkeypatch.setitem(sys.modules, "xformers", None)
    attention._xformers.cache_clear()
    with pytest.raises(UserError, match="pip install xformers"):
        attention.require("xformers", torch.device("cuda"))
