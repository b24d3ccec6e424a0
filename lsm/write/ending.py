"""Telling by its vector that a sentence is a document's last.

Shape letters: N sentences, D vector width.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lsm.decode.phrase_store import PhraseStore
from lsm.decode.vectors import unit
from lsm.errors import UserError

_FEWEST_DOCUMENTS = 10
_MOST_OTHERS = 50_000
FALSE_ALARMS = 0.01
"""Stops a document, before its end, that are put up with on average in stored ones."""


class Ending:
    """Logistic regression between the last sentences of a store's documents and all others, on unit vectors.

    The threshold lets one document in a hundred of the store be ended early, judged by halves that were not fitted; documents of another
    time or kind are ended early more often, since one sentence in hundreds is to be found. A document's last sentence is
    the last that the store holds for it: where that was said before by another document, it stands there and not here.
    """

    def __init__(self, weight_D: np.ndarray, threshold: float) -> None:
        self.weight_D, self.threshold = weight_D, threshold

    @classmethod
    def of(cls, store: PhraseStore, *, seed: int = 0) -> Ending:
        """Fit on a store.

        Raises:
            UserError: it holds several sentences of fewer than ten documents.
        """
        held_N = store.documents()
        several_N = np.flatnonzero(np.bincount(held_N)[held_N] > 1)  # of the others only one sentence is held, which says nothing of ends
        _, document_N = np.unique(held_N[several_N], return_inverse=True)
        n_documents = int(document_N.max(initial=-1)) + 1
        if n_documents < _FEWEST_DOCUMENTS:
            raise UserError(
                f"the phrase store holds several sentences of {n_documents} documents, too few to learn how they end: at least "
                f"{_FEWEST_DOCUMENTS}"
            )
        last = np.zeros(len(document_N), dtype=bool)
        last[len(document_N) - 1 - np.unique(document_N[::-1], return_index=True)[1]] = True
        others = np.flatnonzero(~last)
        rows = np.concatenate([np.flatnonzero(last), np.random.default_rng(seed).permutation(others)[:_MOST_OTHERS]])
        z_ND, is_last_N, even_N = store.vectors(several_N[rows]), last[rows], document_N[rows] % 2 == 0
        unseen_N = np.zeros(len(rows))
        for half in (even_N, ~even_N):
            unseen_N[~half] = z_ND[~half] @ _fit(z_ND[half], is_last_N[half])
        alarms = FALSE_ALARMS * n_documents / len(others)
        return cls(_fit(z_ND, is_last_N), float(np.quantile(unseen_N[~is_last_N], 1 - min(1.0, alarms))))

    def score(self, z_ND: np.ndarray) -> np.ndarray:
        """Log odds of being a last sentence [N], up to a constant."""
        return unit(z_ND) @ self.weight_D

    def __call__(self, z_D: Tensor) -> bool:
        """Whether a document should end with this sentence."""
        return float(self.score(z_D.cpu().numpy()[None])[0]) > self.threshold


def _fit(z_ND: np.ndarray, is_last_N: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(class_weight="balanced", max_iter=500).fit(z_ND, is_last_N).coef_[0].astype(np.float32)
