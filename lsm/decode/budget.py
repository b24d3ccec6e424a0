"""One encoder budget for a decode call: hypotheses are encoded in one batch, each text once, and never more than the limit for a vector.

Shape letters: B target vectors, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lsm.decode.vectors import Encode, unit


class Hypothesis(NamedTuple):
    """A text that has been re-encoded."""

    text: str
    cosine: float
    """Between its vector and the target's."""
    z_D: np.ndarray
    """Its vector, unit length."""


class EncoderBudget:
    """Encodes hypotheses for B targets and counts them: a call is one distinct text encoded for one target.

    What another target has had encoded costs no time but counts: a target gets no more and no less for standing in a batch.
    """

    def __init__(self, encode: Encode, z_BD: np.ndarray, limit: int) -> None:
        """Spend at most `limit` calls on each of the targets `z_BD`."""
        self._encode, self.limit = encode, limit
        self.target_BD = unit(z_BD)
        self.used_B = np.zeros(len(z_BD), dtype=np.int64)
        self._vectors: dict[str, np.ndarray] = {}
        self._tried: list[dict[str, Hypothesis]] = [{} for _ in z_BD]

    def left(self, target: int) -> int:
        """Calls that the target still has."""
        return self.limit - int(self.used_B[target])

    def tried(self, target: int, text: str) -> bool:
        """Whether the text has been encoded for the target: trying it again is free."""
        return text in self._tried[target]

    def hypotheses(self, target: int) -> list[Hypothesis]:
        """Everything encoded for the target, in order."""
        return list(self._tried[target].values())

    def nearest(self, target: int) -> list[Hypothesis]:
        """The same, the nearest first."""
        return sorted(self.hypotheses(target), key=lambda one: -one.cosine)

    def try_texts(self, texts: Sequence[Sequence[str]]) -> list[list[Hypothesis]]:
        """Encode each target's texts, all in one batch.

        Args:
            texts: one sequence a target (an empty one for a target that has no wish). Empty texts are passed over.

        Returns:
            Each target's hypotheses in the order of its texts; texts beyond its budget are left out.
        """
        assert len(texts) == len(self._tried)
        allowed = [self._allowed(target, wished) for target, wished in enumerate(texts)]
        new = list(dict.fromkeys(text for kept in allowed for text in kept if text not in self._vectors))
        if new:
            self._vectors.update(zip(new, unit(np.asarray(self._encode(new), dtype=np.float32)), strict=True))
        for target, kept in enumerate(allowed):
            for text in kept:
                if text not in self._tried[target]:
                    z_D = self._vectors[text]
                    self._tried[target][text] = Hypothesis(text, float(z_D @ self.target_BD[target]), z_D)
                    self.used_B[target] += 1
        return [[self._tried[target][text] for text in kept] for target, kept in enumerate(allowed)]

    def _allowed(self, target: int, wished: Sequence[str]) -> list[str]:
        kept, room = [], self.left(target)
        for text in dict.fromkeys(text for text in wished if text.strip()):
            if not self.tried(target, text):
                if room == 0:
                    continue
                room -= 1
            kept.append(text)
        return kept
