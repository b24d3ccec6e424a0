"""Pulling a plan onto the manifold of sentences, so that a decoder that knows real sentence vectors only can word it.

Shape letters: D vector width, K neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lsm.decode.phrase_store import PhraseStore

_TEMPERATURE = 0.05


class Snapper:
    """Replaces a planned vector by the mean of its `k` nearest stored sentences, weighted by a softmax of their cosines, of unit length.

    The nearest one is then used up: a plan that stands still moves on to other sentences instead of repeating itself.
    """

    def __init__(self, store: PhraseStore, k: int) -> None:
        assert k >= 1
        self.store, self.k = store, k
        self._used: set[int] = set()

    def __call__(self, plan_D: Tensor) -> Tensor:
        """The unit vector [D] that takes the place of `plan_D`; the plan itself when every stored sentence is used up."""
        rows, scores, found_KD = self.store.neighbours(plan_D.numpy()[None], self.k + len(self._used))
        free = [place for place, row in enumerate(rows) if row not in self._used][: self.k]
        if not free:
            return plan_D
        self._used.add(int(rows[free[0]]))
        weight_K = np.exp((scores[free] - scores[free[0]]) / _TEMPERATURE)
        mean_D = torch.from_numpy((weight_K[:, None] * found_KD[free]).sum(0))
        return mean_D / mean_D.norm().clamp(min=1e-12)
