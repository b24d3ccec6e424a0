"""The lexical forecast: the words to be expected in the next sentence, as one vector for which the mean is the right answer.

A sentence's bag is b = Σ_v w_v·c_v over its distinct tokens v, less the mean bag: a superposition without positions, in which w_v is the
inverse document frequency and c_v ∈ R^K the token's row of a codebook C = U·(UᵀU)^−½ with rows u_v = f_v·w_v·e_v, e_v the token's row of
the LM's output layer and f_v its share of sentences. C's columns are orthonormal, so that C·b is a projection of the weighted counts
themselves: E[b | read] read back with C tells w_v·(P(v | read) − f_v) as well as K numbers can, each word's change in proportion to how
frequent it is, like words together. Random signs for c_v read nothing back at this K: the noise of 49,152 words drowns each (docs/LOG.md).

Shape letters: N positions or sentences, H hidden width, K dims of a bag (the LM's width), V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm.config import STRICT
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM

_RIDGE = 1e-3
"""Of the codebook's Gram matrix, in units of its mean diagonal."""


@dataclass(frozen=True, kw_only=True)
class LexicalSpace:
    """The LM whose words are forecast."""

    __pydantic_config__ = STRICT

    lm: str
    lm_sha256: str
    vocabulary: int
    dims: int

    @classmethod
    def of(cls, lm: FrozenLM) -> LexicalSpace:
        """The space of an LM's words."""
        return cls(lm=lm.name, lm_sha256=lm.sha256, vocabulary=len(lm.head_VH), dims=lm.width)

    def require(self, lm: FrozenLM) -> None:
        """Raise `UserError` unless `lm` is the one."""
        if lm.sha256 != self.lm_sha256:
            raise UserError(
                f"the model forecasts words of {self.lm} (sha256 {self.lm_sha256[:12]}), the LM at hand is {lm.name} ({lm.sha256[:12]}); "
                f"name {self.lm}, or pretrain with --lexical-lm {lm.name}"
            )


class LexicalForecast(nn.Module):
    """Predicts the next sentence's bag of words from the transformer's state; what turns words into bags and back comes by `attach`."""

    share_V: Tensor
    weight_V: Tensor
    mean_K: Tensor
    square: Tensor

    def __init__(self, hidden: int, space: LexicalSpace) -> None:
        super().__init__()
        self.space = space
        self.project = nn.Linear(hidden, space.dims)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.register_buffer("share_V", torch.zeros(space.vocabulary))
        self.register_buffer("weight_V", torch.zeros(space.vocabulary))
        self.register_buffer("mean_K", torch.zeros(space.dims))
        self.register_buffer("square", torch.ones(1))
        self._codebook_VK: Tensor | None = None

    @torch.no_grad()
    def fit(self, lm: FrozenLM, texts: Sequence[str]) -> None:
        """Document frequencies, weights, and mean and mean square of the bags, from sentences of the training documents."""
        rows = lm.tokens.encode_exact(texts)
        n, distinct = len(rows), [np.unique(np.asarray(ids, dtype=np.int64)) for ids in rows]
        count_V = np.bincount(np.concatenate(distinct), minlength=self.space.vocabulary)
        weight_V = np.log((1 + n) / (1 + count_V))
        scale = np.sqrt(np.mean([(weight_V[ids] ** 2).sum() for ids in distinct]))
        self.share_V.copy_(torch.from_numpy(count_V / n))
        self.weight_V.copy_(torch.from_numpy(weight_V / max(scale, 1e-12)))
        self.attach(lm)
        bags_NK = self._sums(rows)
        self.mean_K.copy_(bags_NK.mean(0))
        self.square.copy_((bags_NK - self.mean_K).square().sum(-1).mean().clamp(min=1e-12))

    @torch.no_grad()
    def attach(self, lm: FrozenLM) -> None:
        """Make the codebook from the LM's output layer; raises `UserError` when it is another LM."""
        self.space.require(lm)
        u_VK = (self.share_V * self.weight_V)[:, None] * lm.head_VH.to(self.share_V)
        gram_KK = (u_VK.T @ u_VK).cpu().double()  # Apple's GPUs have no float64
        gram_KK += torch.eye(len(gram_KK), dtype=torch.float64) * (_RIDGE * gram_KK.diagonal().mean()).clamp(min=1e-30)
        value_K, vector_KK = torch.linalg.eigh(gram_KK)
        self._codebook_VK = u_VK @ ((vector_KK * value_K.rsqrt()) @ vector_KK.T).to(u_VK)

    @property
    def codebook_VK(self) -> Tensor:
        """What each token adds to a bag for each unit of weight."""
        assert self._codebook_VK is not None, "attach an LM first"
        if self._codebook_VK.device != self.share_V.device:
            self._codebook_VK = self._codebook_VK.to(self.share_V.device)
        return self._codebook_VK

    def bags(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The bags of sentences given as token ids, [N, K]: 0 is the mean one."""
        return self._sums(rows) - self.mean_K

    def forward(self, state: Tensor) -> Tensor:
        """State […, H] → expected bag […, K]."""
        return self.project(state).float() * self.square.sqrt()

    def loss(self, state_NH: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
        """Mean squared error of the bags over their variance in the sentences of `fit`: 1 for forecasting the mean bag."""
        return (self(state_NH) - self.bags(rows)).square().sum(-1).mean() / self.square.squeeze(0)

    def scores(self, bag_NK: Tensor) -> Tensor:
        """Probability of standing in the sentence times weight, of each token, read from an expected bag: [N, V]."""
        return self.share_V * self.weight_V + bag_NK.float() @ self.codebook_VK.T

    def shares(self, bag_NK: Tensor) -> Tensor:
        """Probability that each token stands in the sentence, [N, V] in [0, 1]; of tokens that stood in no sentence of `fit`, 0."""
        return (self.scores(bag_NK) / self.weight_V.clamp(min=1e-6)).clamp(0, 1)

    def _sums(self, rows: Sequence[Sequence[int]]) -> Tensor:
        distinct = [sorted(set(ids)) for ids in rows]
        device = self.codebook_VK.device
        ids = torch.tensor(list(itertools.chain.from_iterable(distinct)), dtype=torch.int64, device=device)
        starts = torch.tensor([0, *itertools.accumulate(map(len, distinct))][:-1], device=device)
        return F.embedding_bag(ids, self.codebook_VK, starts, mode="sum", per_sample_weights=self.weight_V[ids])
