"""Intervals by resampling documents: sentences of one document stand or fall together, so documents are what is drawn again.

Letters: N values (one a sentence), G documents, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
_BLOCK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval (percentile bootstrap over documents, Efron 1979)."""

    value: float
    low: float
    high: float

    def clear_of_zero(self) -> bool:
        """True when the interval leaves zero out: of a paired difference, that the two really differ."""
        return self.low > 0 or self.high < 0


def as_row(estimates: dict[str, Estimate]) -> dict[str, Any]:
    """Estimates as entries of a scoreboard row: values by name, and under `intervals` [low, high]; what is not defined is None."""
    values: dict[str, Any] = {name: _or_none(estimate.value) for name, estimate in estimates.items()}
    return values | {"intervals": {name: [_or_none(estimate.low), _or_none(estimate.high)] for name, estimate in estimates.items()}}


def draw(n_documents: int, resamples: int, seed: int) -> np.ndarray:
    """How often each document is drawn in each resample, [R, G]; equal arguments give equal draws, so that differences can be paired.

    One document cannot be resampled: no draws, and intervals of NaN.
    """
    if resamples == 0 or n_documents < 2:
        return np.zeros((0, n_documents), dtype=np.float64)
    generator = np.random.default_rng((seed, n_documents))
    return generator.multinomial(n_documents, np.full(n_documents, 1.0 / n_documents), size=resamples).astype(np.float64)


def mean(values_N: np.ndarray, document_N: np.ndarray, drawn_RG: np.ndarray) -> Estimate:
    """Mean over sentences with its interval; NaN values count as absent.

    Args:
        values_N: one value a sentence, NaN where it is not defined.
        document_N: number of the document that each belongs to, 0 … G−1.
        drawn_RG: from `draw`.
    """
    there = ~np.isnan(values_N)
    if not there.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    n_documents = drawn_RG.shape[1]
    sums_G = np.bincount(document_N[there], weights=values_N[there], minlength=n_documents)
    counts_G = np.bincount(document_N[there], minlength=n_documents).astype(np.float64)
    counts_R = drawn_RG @ counts_G
    means_R = (drawn_RG @ sums_G)[counts_R > 0] / counts_R[counts_R > 0]
    return _estimate(float(values_N[there].mean()), means_R)


def median(values_N: np.ndarray, document_N: np.ndarray, drawn_RG: np.ndarray) -> Estimate:
    """Median over sentences (the lower one of an even number) with its interval; NaN values count as absent."""
    there = ~np.isnan(values_N)
    if not there.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    order = np.argsort(values_N[there], kind="stable")
    sorted_N, sorted_document_N = values_N[there][order], document_N[there][order]
    block = max(1, _BLOCK_ELEMENTS // len(sorted_N))
    medians: list[float] = []
    for start in range(0, len(drawn_RG), block):
        reached_RN = np.cumsum(drawn_RG[start : start + block][:, sorted_document_N], axis=1)
        half_R = reached_RN[:, -1] / 2
        for reached_N, half in zip(reached_RN, half_R, strict=True):
            if half > 0:
                medians.append(float(sorted_N[np.searchsorted(reached_N, half)]))
    return _estimate(float(sorted_N[(len(sorted_N) - 1) // 2]), np.asarray(medians))


def statistic(counts_GM: np.ndarray, drawn_RG: np.ndarray, function: Callable[[np.ndarray], float]) -> Estimate:
    """A statistic of summed counts (such as corpus BLEU) with its interval.

    Args:
        counts_GM: what each document adds to the sums, M numbers a document.
        function: sums [M] → the statistic.
    """
    resampled = [function(sums) for sums in drawn_RG @ counts_GM]
    return _estimate(float(function(counts_GM.sum(axis=0))), np.asarray(resampled, dtype=np.float64))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    resampled = resampled[np.isfinite(resampled)]
    if len(resampled) == 0:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
