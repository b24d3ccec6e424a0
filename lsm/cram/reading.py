"""How a frozen LM reads memory vectors: token after token behind them, or all tokens in one pass; loss, right tokens, free-running text.

Shape letters: B texts, T tokens, P vectors, S start tokens, H hidden width, K kept sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lsm.lm.generation import Sampling, generate_ids
from lsm.lm.loss import frozen_divergence, frozen_prediction, row_means
from lsm.lm.tokens import opening_ids, pad_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lsm.lm.frozen import FrozenLM

Form = Literal["autoregressive", "one-pass"]

_KEPT = (
    "The train to the coast leaves at seven, and the next one not before noon.",
    "Water boils at a lower temperature on a mountain than it does at sea level.",
    "She closed the shop early because the rain had kept everybody at home.",
    "To make a simple soup, fry an onion, add two carrots and a litre of water.",
    "Two and three make five, and five and five make ten.",
    "The committee will meet again in March to settle what was left open.",
    "Most birds of this valley fly south when the first cold nights come.",
    "Dear neighbour, thank you for looking after the cat while we were away.",
)
"""Sentences behind the vector on which the LM shall go on as it does without it."""


@dataclass(frozen=True)
class Told:
    """What one pass says of each text."""

    loss_B: Tensor
    """Mean cross-entropy in nats of the target's tokens, with gradient."""
    divergence_B: Tensor
    """Mean KL in nats a token of the kept sentence, with gradient; zeros without one."""
    n_right_B: Tensor
    """Tokens of the target that are the most probable ones after the true tokens before them."""


class Reading:
    """Memory vectors of one form under one LM, behind what the LM expects before every text (Gemma's <bos>), or one end token.

    Without it the vectors stand where an LM keeps its attention sink, whose state hardly depends on the input.
    """

    def __init__(self, lm: FrozenLM, form: Form = "autoregressive", *, start: bool = True) -> None:
        """
        Args:
            start: put that token before the vectors.
        """
        self.lm, self.form = lm, form
        ids = opening_ids(lm.tokens) if start else []
        self._start_SH = lm.embed(torch.tensor(ids, dtype=torch.int64, device=lm.device))

    def prefix(self, vectors_BPH: Tensor) -> Tensor:
        """The LM's start and the vectors, [B, S + P, H]."""
        start_BSH = self._start_SH.expand(len(vectors_BPH), -1, -1)
        return torch.cat([start_BSH.to(vectors_BPH.dtype), vectors_BPH], dim=1)

    def hidden(self, vectors_BPH: Tensor, ids_BT: Tensor) -> Tensor:
        """Final hidden states [B, T, H] that tell each token of the target; in one pass none of the tokens is read."""
        if self.form == "autoregressive":
            return self.lm.prefix_hidden(self.prefix(vectors_BPH), ids_BT)
        asked_BTH = vectors_BPH[:, 1:].expand(-1, ids_BT.shape[1], -1)
        return self.lm.final_hidden(self.prefix(torch.cat([vectors_BPH[:, :1], asked_BTH], dim=1)))[:, -ids_BT.shape[1] :]

    def told(self, vectors_BPH: Tensor, rows: Sequence[Sequence[int]], turns_B: Sequence[int] = ()) -> Told:
        """Loss and right tokens of each target `rows`; with turns, each text is also held to the kept sentence whose turn it is."""
        ids_BT, mask_BT = (part.to(self.lm.device) for part in pad_ids(rows, self.lm.tokens.end_id))
        loss_N, right_N = frozen_prediction(self.hidden(vectors_BPH, ids_BT)[mask_BT], self.lm.head_VH, ids_BT[mask_BT])
        n_right_B = (row_means(right_N.float(), mask_BT) * mask_BT.sum(1)).round().long()
        divergence_B = self._divergence(vectors_BPH, turns_B) if turns_B else torch.zeros(len(rows), device=self.lm.device)
        return Told(row_means(loss_N, mask_BT), divergence_B, n_right_B)

    @torch.no_grad()
    def decode(self, vectors_BPH: Tensor, n_tokens: Sequence[int]) -> list[list[int]]:
        """The tokens that the vectors alone give back, greedily and free-running, nothing forbidden: up to so many of each text."""
        longest = max(n_tokens)
        if self.form == "autoregressive":
            sampling = Sampling(max_new_tokens=longest, no_repeat_tokens=0)
            rows = generate_ids(self.lm, self.prefix(vectors_BPH), sampling)
        else:
            ids_BT = torch.zeros(len(vectors_BPH), longest, dtype=torch.int64, device=self.lm.device)
            rows = self.lm.logits(self.hidden(vectors_BPH, ids_BT)).argmax(-1).tolist()
        return [row[:n] for row, n in zip(rows, n_tokens, strict=True)]

    def _divergence(self, vectors_BPH: Tensor, turns_B: Sequence[int]) -> Tensor:
        picked = torch.tensor(turns_B, device=self.lm.device) % len(_KEPT)
        ids_KT, mask_KT, teacher_KTH = self._kept
        ids_BT, mask_BT = ids_KT[picked], mask_KT[picked]
        prefix_BPH = self.prefix(vectors_BPH)
        inputs = torch.cat([prefix_BPH.to(self.lm.dtype), self.lm.embed(ids_BT)], dim=1)
        student_BTH = self.lm.final_hidden(inputs)[:, prefix_BPH.shape[1] :]
        return row_means(frozen_divergence(teacher_KTH[picked][mask_BT], student_BTH[mask_BT], self.lm.head_VH), mask_BT)

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and mask [K, T] of the kept sentences, and the hidden states [K, T, H] from which the LM tells what follows each token."""
        ids_KT, mask_KT = self.lm.tokenize(_KEPT)
        with torch.no_grad():
            states = self.lm.final_hidden(self.prefix(self.lm.embed(ids_KT)))
        return ids_KT, mask_KT, states[:, len(self._start_SH) :]
