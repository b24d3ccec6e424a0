"""Wording in context: beside a vector's soft prefix the LM reads the text so far, and words that are expected there are lifted.

Shape letters: B vectors, D vector width, K neighbours, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lsm.decode.decoders import PrefixDecoder
from lsm.decode.phrase_store import PhraseStore
from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Beside
from lsm.lm.tokens import log_odds

DEFAULT_WEIGHT = 0.3
CONTEXT_TOKENS = 96
_NEAR, _TEMPERATURE = 8, 0.05
_BACKGROUND_SENTENCES = 2000
Forecast = Callable[[np.ndarray], Tensor]
"""Vectors [B, D] → log odds [B, V] of the words that were forecast with them."""


@runtime_checkable
class ReadsText(Protocol):
    """A decoder that takes into account what stands before its sentences."""

    def read(self, texts: Sequence[str]) -> None:
        """The sentences before those that are worded next; replaces what was read before."""
        ...


def last_tokens(lm: FrozenLM, texts_B: Sequence[Sequence[str]], n_tokens: int) -> list[list[int]]:
    """The last tokens of each text so far, which is given as its sentences."""
    rows = lm.tokens.encode(["".join(f"{text}\n" for text in texts) for texts in texts_B])
    return [[*lm.tokens.start_ids, *ids[-n_tokens:]] if ids else [] for ids in rows]


class ContextDecoder(PrefixDecoder):
    """A prefix decoder that multiplies in the LM's own expectation after the text so far, p(x | vector) · p(x | text)^weight, and lifts
    words: those of stored sentences near the vector, and those that a latent transformer forecast with it.

    When a sentence ends is left to the vector. All sentences of one call share the text: it is read once, and each token costs two steps of
    the LM where the prefix alone costs one.
    """

    name = "prefix in context"

    def __init__(
        self,
        prefix: PrefixDecoder,
        *,
        weight: float = DEFAULT_WEIGHT,
        store: PhraseStore | None = None,
        lift: float = 0.0,
        forecast: Forecast | None = None,
        forecast_weight: float = 0.0,
    ) -> None:
        """
        Args:
            weight: of the text so far; 0 does not read it.
            store: sentences whose words are lifted, of the same encoder.
            lift: of a word that all near sentences hold and few others, in units of its log odds; 0 lifts none.
            forecast: log odds of words that go with a vector.
            forecast_weight: what they are multiplied by.
        """
        super().__init__(prefix.lm, prefix.adapter, sampling=prefix.sampling)
        assert weight >= 0 and lift >= 0 and forecast_weight >= 0
        if store is not None:
            store.require_encoder(self.encoder)
        self.weight, self.store, self.lift = weight, store, lift
        self.forecast, self.forecast_weight = forecast, forecast_weight
        self._ids_1T: Tensor | None = None
        self._background_V: Tensor | None = None

    def read(self, texts: Sequence[str]) -> None:
        """The sentences before those that are worded next; the last 96 tokens of them count."""
        (ids,) = last_tokens(self.lm, [texts], CONTEXT_TOKENS)
        self._ids_1T = torch.tensor([ids], device=self.lm.device) if ids else None

    def evidence(self, z_BD: np.ndarray) -> tuple[Beside | None, Tensor | None]:
        beside = Beside(self._ids_1T, self.weight) if self._ids_1T is not None and self.weight else None
        lifts = [self._lifted(z_BD)] if self.store is not None and self.lift else []
        if self.forecast is not None and self.forecast_weight:
            found_BV = torch.zeros(len(z_BD), len(self.lm.head_VH), device=self.lm.device)
            odds_BV = self.forecast(z_BD).to(found_BV)
            found_BV[:, : odds_BV.shape[1]] = odds_BV  # an LM may have more outputs than tokens
            lifts.append(self.forecast_weight * found_BV)
        return beside, torch.stack(lifts).sum(0) if lifts else None

    def _lifted(self, z_BD: np.ndarray) -> Tensor:
        """Lift of each word [B, V]: log odds of standing in a near sentence rather than in any, never below zero."""
        assert self.store is not None
        if self._background_V is None:
            rows = np.linspace(0, len(self.store) - 1, min(len(self.store), _BACKGROUND_SENTENCES)).astype(np.int64)
            self._background_V = self._share(self.store.texts(rows), np.full(len(rows), 1 / len(rows)))
        shares = []
        for z_D in z_BD:
            rows, scores, _ = self.store.neighbours(z_D[None], _NEAR)
            weight_K = np.exp((scores - scores.max()) / _TEMPERATURE)
            shares.append(self._share(self.store.texts(rows), weight_K / weight_K.sum()))
        share_BV = torch.stack(shares)
        return self.lift * log_odds(share_BV, self._background_V)

    def _share(self, texts: Sequence[str], weight_K: np.ndarray) -> Tensor:
        """Weight of the texts that hold each token, [V]."""
        share_V = torch.zeros(len(self.lm.head_VH), device=self.lm.device)
        for ids, weight in zip(self.lm.tokens.encode(texts), weight_K, strict=True):
            share_V[list(set(ids))] += float(weight)
        return share_V
