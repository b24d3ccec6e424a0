"""The lexical forecast: the words to be expected in the next sentence, as one vector for which the mean is the right answer.

A sentence's bag is b = Σ_v w_v·s_v over its distinct tokens v, with random signs s_v ∈ {±1}^K / √K (the superposition code's without
positions, docs/codes.md) and w_v its inverse document frequency, scaled so that E‖b‖² = 1. E[b] given what was read is
Σ_v P(v | read)·w_v·s_v, so that b̂·s_v / w_v reads P(v | read) back, with noise of deviation about √(Σ_u (P(u)·w_u)² / K) / w_v from the
other words.

Shape letters: N positions or sentences, H hidden width, K dims of a bag, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm.codes.alphabet import Alphabet
from lsm.codes.signs import token_signs
from lsm.config import STRICT

_SEED = 0


@dataclass(frozen=True, kw_only=True)
class LexicalSpace:
    """What bags are made over."""

    __pydantic_config__ = STRICT

    vocabulary: int
    """Tokens that there are."""
    vocabulary_sha256: str
    """Of the tokenizer, as codes record it (`lsm.codes.alphabet`)."""
    dims: int

    @classmethod
    def over(cls, alphabet: Alphabet, dims: int) -> LexicalSpace:
        """Bags of `dims` over the tokens of an LM."""
        return cls(vocabulary=alphabet.size, vocabulary_sha256=alphabet.sha256, dims=dims)


class LexicalForecast(nn.Module):
    """Predicts the next sentence's bag of words from the transformer's state."""

    share_V: Tensor
    weight_V: Tensor
    signs_VK: Tensor

    def __init__(self, hidden: int, space: LexicalSpace) -> None:
        super().__init__()
        self.space = space
        self.project = nn.Linear(hidden, space.dims)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.register_buffer("share_V", torch.zeros(space.vocabulary))
        self.register_buffer("weight_V", torch.zeros(space.vocabulary))
        signs = torch.from_numpy(token_signs(_SEED, space.vocabulary, space.dims)).float() / space.dims**0.5
        self.register_buffer("signs_VK", signs, persistent=False)

    def fit(self, rows: Sequence[Sequence[int]]) -> None:
        """Document frequencies and weights from the token ids of sentences of the training documents."""
        n, vocabulary = len(rows), len(self.share_V)
        distinct = [np.unique(np.asarray(ids, dtype=np.int64)) for ids in rows]
        count_V = np.bincount(np.concatenate(distinct), minlength=vocabulary)
        weight_V = np.log((1 + n) / (1 + count_V))
        scale = np.sqrt(np.mean([(weight_V[ids] ** 2).sum() for ids in distinct]))
        self.share_V.copy_(torch.from_numpy(count_V / n))
        self.weight_V.copy_(torch.from_numpy(weight_V / max(scale, 1e-12)))

    def bags(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The bags of sentences given as token ids, [N, K]."""
        distinct = [sorted(set(ids)) for ids in rows]
        device = self.signs_VK.device
        ids = torch.tensor(list(itertools.chain.from_iterable(distinct)), dtype=torch.int64, device=device)
        starts = torch.tensor([0, *itertools.accumulate(map(len, distinct))][:-1], device=device)
        return F.embedding_bag(ids, self.signs_VK, starts, mode="sum", per_sample_weights=self.weight_V[ids])

    def forward(self, state: Tensor) -> Tensor:
        """State […, H] → expected bag […, K]."""
        return self.project(state).float()

    def loss(self, state_NH: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
        """Mean squared error of the bags over their mean square: 1 for forecasting nothing."""
        return (self(state_NH) - self.bags(rows)).square().sum(-1).mean()

    def scores(self, bag_NK: Tensor) -> Tensor:
        """Probability of standing in the sentence times weight, of each token, read from an expected bag: [N, V]."""
        return bag_NK.float() @ self.signs_VK.T

    def shares(self, bag_NK: Tensor) -> Tensor:
        """A low estimate of the probability that each token stands in the sentence, [N, V] in [0, 1]: two deviations of the other words'
        noise below what is read."""
        noise_N1 = bag_NK.float().norm(dim=-1, keepdim=True) / self.space.dims**0.5
        return ((self.scores(bag_NK) - 2 * noise_N1) / self.weight_V.clamp(min=1e-6)).clamp(0, 1)
