"""What a code reader expects of the next token before it looks at the code: nothing, or what the frozen LM says after a start, the
sentences before, or a soft prefix made from the semantic vector.

Letters: B texts, A rows being read (several hypotheses of a text, finished texts gone), V tokens, P prefix positions, H hidden width.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lsm.decode.adapter import spoken_before
from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Bias
from lsm.lm.tokens import pad_ids

if TYPE_CHECKING:
    from lsm.decode.decoders import PrefixDecoder

START = "A sentence from a text:\n"
"""What the LM reads before a text about which nothing else is known."""
_DRAFTS_AT_ONCE = 16
_TOKENS_AT_ONCE = 1024
"""Their logits are [1024, V]."""


class Session(Protocol):
    """The prior over one batch of texts while they are read from left to right."""

    def step(self, rows_A: Tensor | None, symbols_A: Tensor | None) -> Tensor:
        """log p of the next token [A, V] float32.

        Args:
            rows_A: which of the rows of the step before go on, with repeats; None at the first step.
            symbols_A: the token that each of them read; None at the first step.
        """
        ...


class Weighed(NamedTuple):
    """What a prior says of one draft."""

    drafted_T: np.ndarray
    """log p of each of its tokens after those before it, float64."""
    best_T: np.ndarray
    """log p of the most probable token there."""
    everything_TV: Tensor
    """log p of all tokens there but for a constant a place, float32."""


class Prior(Protocol):
    """Opens sessions over texts by their numbers."""

    name: str
    device: torch.device

    def begin(self, texts_A: np.ndarray) -> Session:
        """A session over texts of one `group`."""
        ...

    def weigh(self, texts_A: np.ndarray, drafts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Weighed]]:
        """What sessions would say of whole drafts, one for each text, of any groups: the number a of each and its `Weighed`, in the prior's
        own order, a few in memory at a time."""
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

    def begin(self, texts_A: np.ndarray) -> Session:
        return _LMSession(self.lm, *self._opening(texts_A), self._special)

    def weigh(self, texts_A: np.ndarray, drafts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Weighed]]:
        keys = [(self.group(text), len(draft), a) for a, (text, draft) in enumerate(zip(texts_A.tolist(), drafts, strict=True))]
        for _, group in itertools.groupby(sorted(keys), key=lambda key: key[0]):
            members = [a for _, _, a in group]  # the shortest first: what is read together has little padding
            while members:
                longest = len(drafts[members[min(_DRAFTS_AT_ONCE, len(members)) - 1]])
                size = max(1, min(_DRAFTS_AT_ONCE, _TOKENS_AT_ONCE // max(1, longest)))
                some, members = members[:size], members[size:]
                yield from zip(some, self._weigh(texts_A[some], [drafts[a] for a in some]), strict=True)

    @torch.inference_mode()
    def _weigh(self, texts_A: np.ndarray, drafts: Sequence[Sequence[int]]) -> list[Weighed]:
        inputs_APH, cache, lift = self._opening(texts_A)
        ids_AT, mask_AT = (x.to(self.device) for x in pad_ids(drafts, self.lm.tokens.end_id))
        embedded_ATH = self.lm.embed(ids_AT)
        whole = torch.cat([inputs_APH.to(self.lm.dtype), embedded_ATH[:, :-1]], dim=1)
        hidden_ATH = self.lm.final_hidden(whole, cache)[:, inputs_APH.shape[1] - 1 :]
        if lift is not None:
            spoken_ATH = spoken_before(embedded_ATH)
            rows_A = torch.arange(len(ids_AT), device=self.device)
            lifts = [lift(spoken_ATH[:, t], t, rows_A) for t in range(ids_AT.shape[1])]
            if some := [bias_AH for bias_AH in lifts if bias_AH is not None]:
                hidden_ATH = (hidden_ATH.float() + torch.stack(some, dim=1)).to(self.lm.dtype)
        logits_NV = self._logits(hidden_ATH[mask_AT])
        total_N = logits_NV.logsumexp(-1)
        lengths = [len(draft) for draft in drafts]
        drafted_N = (logits_NV.gather(1, ids_AT[mask_AT][:, None])[:, 0] - total_N).double().cpu().split(lengths)
        best_N = (logits_NV.amax(-1) - total_N).double().cpu().split(lengths)
        each = zip(drafted_N, best_N, logits_NV.split(lengths), strict=True)
        return [Weighed(drafted_T.numpy(), best_T.numpy(), everything_TV) for drafted_T, best_T, everything_TV in each]

    def _logits(self, hidden_NH: Tensor) -> Tensor:
        logits_NV = self.lm.logits(hidden_NH)
        logits_NV[:, self._special] = -torch.inf
        return logits_NV

    def _opening(self, texts_A: np.ndarray) -> tuple[Tensor, Any, Bias | None]:
        """What is read before each text: inputs [A, P, H], the cache of what stands before them, and the lift of the output."""
        if self._prefix is not None:
            inputs_APH, lift = self._prefix(texts_A)
            return inputs_APH, None, lift
        if self._contexts is not None:
            ids_AP = torch.tensor([self._context(text) for text in texts_A.tolist()], dtype=torch.int64, device=self.device)
            return self.lm.embed(ids_AP), None, None
        cache = copy.deepcopy(self._read_start)
        cache.batch_repeat_interleave(len(texts_A))
        last = torch.tensor(self._start[-1:], device=self.device)
        return self.lm.embed(last).expand(len(texts_A), 1, -1), cache, None

    @cached_property
    @torch.inference_mode()
    def _read_start(self) -> Any:
        """The cache of all of `START` but its last token, one row."""
        return self.lm.read(self.lm.embed(torch.tensor([self._start[:-1]], device=self.device)))[1]

    def _context(self, text: int) -> Sequence[int]:
        return (self._contexts[text] if self._contexts is not None else None) or self._start


class _LMSession:
    """Reads token by token."""

    def __init__(self, lm: FrozenLM, inputs_APH: Tensor, cache: Any, lift: Bias | None, special: Tensor) -> None:
        self.lm, self._inputs, self._cache, self._lift, self._special = lm, inputs_APH, cache, lift, special
        self._origin_A = torch.arange(len(inputs_APH), device=lm.device)
        self._spoken_AH = torch.zeros(len(inputs_APH), lm.width, device=lm.device)
        self._n_tokens = 0

    @torch.inference_mode()
    def step(self, rows_A: Tensor | None, symbols_A: Tensor | None) -> Tensor:
        if rows_A is not None:
            assert symbols_A is not None
            if len(rows_A) != len(self._origin_A) or not torch.equal(rows_A, torch.arange(len(rows_A), device=rows_A.device)):
                self._cache.batch_select_indices(rows_A)
                self._origin_A, self._spoken_AH = self._origin_A[rows_A], self._spoken_AH[rows_A]
            self._inputs = self.lm.embed(symbols_A[:, None])
            self._spoken_AH = self._spoken_AH + self._inputs[:, 0].float()
            self._n_tokens += 1
        bias_AH = self._lift(self._spoken_AH, self._n_tokens, self._origin_A) if self._lift is not None else None
        logits_AV, self._cache = self.lm.step(self._inputs, self._cache, bias_AH)
        logits_AV[:, self._special] = -torch.inf
        return logits_AV.log_softmax(-1)


def semantic_prior(decoder: PrefixDecoder, z_BD: np.ndarray) -> LMPrior:
    """The prior of a prefix adapter's LM that has read each text's semantic vector; z_BD float32 [B, D]."""

    def prefix(texts_A: np.ndarray) -> tuple[Tensor, Bias]:
        return decoder.conditions(z_BD[texts_A])

    return LMPrior(decoder.lm, name="semantic", prefix=prefix)


def previous_prior(lm: FrozenLM, previous: Sequence[str], *, max_tokens: int = 48) -> LMPrior:
    """The prior of an LM that has read what stands before each text ("" = nothing), its last `max_tokens` tokens."""
    rows = lm.tokens.encode(list(previous))
    return LMPrior(lm, name="previous", contexts=[row[-max_tokens:] for row in rows])
