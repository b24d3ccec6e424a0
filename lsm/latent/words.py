"""Objectives in words: a frozen decoder, which latent does not know and is handed, reads the predicted vectors.

Shape letters: N queries, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from lsm.corpus.sampler import VectorDocuments
from lsm.latent.batch import LatentBatch

_SENTENCES_BEFORE = 32
"""As far back as `text_lm` looks for its tokens."""


class WordLosses(Protocol):
    """A decoder's losses for unit vectors [N, D] and the sentences that they should be: nats a token [N], with gradients to the vectors."""

    @property
    def name(self) -> str:
        """What tells one such decoder from another."""
        ...

    def words(self, z_ND: Tensor, texts: Sequence[str]) -> Tensor:
        """Cross-entropy of the sentences."""
        ...

    def text_lm(self, z_ND: Tensor, texts: Sequence[str], before: Sequence[Sequence[str]]) -> Tensor:
        """Divergence of the LM that has read the sentences before, at least one, from the decoder that reads the vector."""
        ...


def word_loss(
    name: Literal["words", "text_lm"], losses: WordLosses, predicted_ND: Tensor, batch: LatentBatch, source: VectorDocuments
) -> Tensor:
    """Mean of one of the losses over the predictions of `batch.worded_N`, whose texts `source` holds."""
    worded = batch.worded_N.cpu().numpy()
    target, first = batch.target_row_N[worded], batch.first_row_N[worded]
    if not len(target):
        return 0 * predicted_ND.sum()  # one process of several may have none of them
    z_ND, texts = F.normalize(predicted_ND, dim=-1), source.text_at(target)
    if name == "words":
        return losses.words(z_ND, texts).mean()
    first = np.maximum(first, target - _SENTENCES_BEFORE)
    earlier = source.text_at(np.concatenate([np.arange(start, stop) for start, stop in zip(first, target, strict=True)]))
    ends = np.cumsum(target - first)
    before = [earlier[end - count : end] for end, count in zip(ends, target - first, strict=True)]
    return losses.text_lm(z_ND, texts, before).mean()
