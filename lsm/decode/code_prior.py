"""What a code reader expects of the next token before it looks at the code: nothing, or what the frozen LM says after a start, the
sentences before, or a soft prefix made from the semantic vector.

Letters: B texts, A rows being read (several hypotheses of a text, finished texts gone), V tokens, P prefix positions, H hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Bias
from lsm.lm.tokens import pad_ids

if TYPE_CHECKING:
    from lsm.decode.decoders import PrefixDecoder

START = "A sentence from a text:\n"
"""What the LM reads before a text about which nothing else is known."""


class Session(Protocol):
    """The prior over one batch of texts while they are read from left to right."""

    def step(self, rows_A: Tensor | None, symbols_A: Tensor | None) -> Tensor:
        """log p of the next token [A, V] float32.

        Args:
            rows_A: which of the rows of the step before go on, with repeats; None at the first step.
            symbols_A: the token that each of them read; None at the first step.
        """
        ...


class Prior(Protocol):
    """Opens sessions over texts by their numbers."""

    name: str
    device: torch.device

    def begin(self, texts_A: np.ndarray, drafts: Sequence[Sequence[int]] | None = None) -> Session:
        """A session over texts of one `group`.

        Args:
            drafts: tokens of each text that are believed to be read. The session looks at them all at once, and is right about a row
                for as long as the row reads what its draft says.
        """
        ...

    def group(self, text: int) -> int:
        """Texts of one group may be read in one batch."""
        ...


class LMPrior:
    """The frozen LM's next-token distribution, special tokens left out."""

    def __init__(
        self,
        lm: FrozenLM,
        *,
        name: str = "lm",
        contexts: Sequence[Sequence[int]] | None = None,
        prefix: Callable[[np.ndarray], tuple[Tensor, Bias | None]] | None = None,
    ) -> None:
        """Args:
        contexts: ids that the LM reads before each text (the sentences before it); an empty one falls back to `START`.
        prefix: numbers of texts → soft prefix [B, P, H] and the lift of their output, before which nothing else is read.
        """
        self.lm, self.name, self.device = lm, name, lm.device
        self._contexts, self._prefix = contexts, prefix
        self._start = lm.tokens.encode([START])[0]
        self._special = torch.tensor(lm.tokens.special_ids(), dtype=torch.int64, device=lm.device)

    def group(self, text: int) -> int:
        return len(self._context(text))

    def begin(self, texts_A: np.ndarray, drafts: Sequence[Sequence[int]] | None = None) -> Session:
        lift: Bias | None = None
        cache: Any = None
        if self._prefix is not None:
            inputs_APH, lift = self._prefix(texts_A)
        elif self._contexts is None:
            inputs_APH = self.lm.embed(torch.tensor(self._start[-1:], device=self.device)).expand(len(texts_A), 1, -1)
            cache = copy.deepcopy(self._read_start)
            cache.batch_repeat_interleave(len(texts_A))
        else:
            ids_AT = torch.tensor([self._context(text) for text in texts_A.tolist()], dtype=torch.int64, device=self.device)
            inputs_APH = self.lm.embed(ids_AT)
        if drafts is None:
            return _LMSession(self.lm, inputs_APH, cache, self._special, lift)
        return _DraftSession(self.lm, inputs_APH, cache, self._special, lift, drafts)

    @cached_property
    @torch.inference_mode()
    def _read_start(self) -> Any:
        """The cache of all of `START` but its last token, one row."""
        return self.lm.read(self.lm.embed(torch.tensor([self._start[:-1]], device=self.device)))[1]

    def _context(self, text: int) -> Sequence[int]:
        return (self._contexts[text] if self._contexts is not None else None) or self._start


class _LMSession:
    """Reads token by token, with a cache."""

    def __init__(self, lm: FrozenLM, inputs_APH: Tensor, cache: Any, special: Tensor, lift: Bias | None) -> None:
        self.lm, self._inputs, self._cache, self._special, self._lift = lm, inputs_APH, cache, special, lift
        self._origin_A = torch.arange(len(inputs_APH), device=lm.device)
        self._spoken_AH = torch.zeros(len(inputs_APH), lm.width, device=lm.device)
        self._n_tokens = 0

    @torch.inference_mode()
    def step(self, rows_A: Tensor | None, symbols_A: Tensor | None) -> Tensor:
        if rows_A is not None:
            assert symbols_A is not None
            if len(rows_A) != len(self._origin_A) or not torch.equal(rows_A, torch.arange(len(rows_A), device=rows_A.device)):
                self._select(rows_A)
            self._inputs = self.lm.embed(symbols_A[:, None])
            self._spoken_AH = self._spoken_AH + self._inputs[:, 0].float()
            self._n_tokens += 1
        bias_AH = self._lift(self._spoken_AH, self._n_tokens, self._origin_A) if self._lift is not None else None
        logits_AV = self.lm.logits(self._hidden(), bias_AH)
        logits_AV[:, self._special] = -torch.inf
        return logits_AV.log_softmax(-1)

    def _select(self, rows_A: Tensor) -> None:
        if self._cache is not None:
            self._cache.batch_select_indices(rows_A)
        self._origin_A, self._spoken_AH = self._origin_A[rows_A], self._spoken_AH[rows_A]

    def _hidden(self) -> Tensor:
        """What the output layer reads of each row's next token [A, H]."""
        hidden_AH, self._cache = self.lm.read(self._inputs, self._cache)
        return hidden_AH


class _DraftSession(_LMSession):
    """Has read whole drafts in one pass; each step looks up its place in it."""

    @torch.inference_mode()
    def __init__(
        self, lm: FrozenLM, inputs_APH: Tensor, cache: Any, special: Tensor, lift: Bias | None, drafts: Sequence[Sequence[int]]
    ) -> None:
        super().__init__(lm, inputs_APH, None, special, lift)
        ids_AT = pad_ids(drafts, lm.tokens.end_id)[0].to(lm.device)
        whole = torch.cat([inputs_APH.to(lm.dtype), lm.embed(ids_AT[:, :-1])], dim=1)
        self._hidden_ATH = lm.final_hidden(whole, cache)[:, inputs_APH.shape[1] - 1 :]

    def _hidden(self) -> Tensor:
        return self._hidden_ATH[self._origin_A, self._n_tokens]


def semantic_prior(decoder: PrefixDecoder, z_BD: np.ndarray) -> LMPrior:
    """The prior of a prefix adapter's LM that has read each text's semantic vector; z_BD float32 [B, D]."""

    def prefix(texts_A: np.ndarray) -> tuple[Tensor, Bias]:
        return decoder.conditions(z_BD[texts_A])

    return LMPrior(decoder.lm, name="semantic", prefix=prefix)


def previous_prior(lm: FrozenLM, previous: Sequence[str], *, max_tokens: int = 48) -> LMPrior:
    """The prior of an LM that has read what stands before each text ("" = nothing), its last `max_tokens` tokens."""
    rows = lm.tokens.encode(list(previous))
    return LMPrior(lm, name="previous", contexts=[row[-max_tokens:] for row in rows])
