"""What a nearest-neighbour index finds of the true neighbours, and how long it takes: measured, and its effort chosen by that.

Shape letters: Q queries, D vector width, K neighbours, N vectors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lsm.decode.index_kinds import ROWS_AT_ONCE, Kind, VectorsAt, efforts
from lsm.decode.nearest import Nearest
from lsm.decode.vectors import unit

NEIGHBOURS = 10
QUERIES = 128
NOISE = 0.5
"""Length of the random vector that is added to a stored one, of length 1, to make a query: their cosine is about 0.89."""
TARGET, WANTED = 0.97, 0.95
"""Recall that the effort is chosen for, and the recall below which a store says so: the first leaves room for chance."""
_BATCH = 64
_SECONDS = 5.0
_SAME = 1e-6


@dataclass(frozen=True)
class Measured:
    """What was measured; recall on other queries than those that the effort was chosen by."""

    recall_at_10: float
    """Share of the ten nearest (exact cosine) that are found."""
    n_queries: int
    noise: float
    milliseconds_one_by_one: float
    """A query, searched alone, on one thread."""
    milliseconds_in_batches_of_64: float
    """A query, 64 searched at once, on one thread."""

    def line(self) -> str:
        """For a person."""
        return (
            f"recall@{NEIGHBOURS} {self.recall_at_10:.3f} on {self.n_queries} queries (stored vectors and noise of length {self.noise}); "
            f"{self.milliseconds_one_by_one:.2f} ms a query alone, {self.milliseconds_in_batches_of_64:.2f} ms in batches of {_BATCH}, "
            "one thread"
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


def tune_and_measure(nearest: Nearest, kind: Kind, n: int, dim: int, vectors_at: VectorsAt, *, seed: int = 0) -> Measured:
    """Set the least effort that finds `TARGET` of the true neighbours (or the most there is), then measure on other queries.

    Args:
        vectors_at: the n vectors that the index was built over; an approximate index is compared with all of them, in one pass.
    """
    q_QD = make_queries(n, dim, vectors_at, QUERIES if kind == "flat" else 2 * QUERIES, seed=seed)
    k = min(NEIGHBOURS, n)
    judged = slice(None)
    recall = 1.0
    with one_thread():
        if kind != "flat":
            true_QK = exact_cosines(q_QD, k, n, vectors_at)
            chosen_by, judged = slice(0, None, 2), slice(1, None, 2)
            for effort in efforts(kind):
                nearest.set_effort(effort)
                if _recall(nearest, q_QD[chosen_by], true_QK[chosen_by]) >= TARGET:
                    break
            recall = _recall(nearest, q_QD[judged], true_QK[judged])
        alone, together = milliseconds(nearest, q_QD[judged])
    return Measured(recall, len(q_QD[judged]), NOISE, alone, together)


def make_queries(n: int, dim: int, vectors_at: VectorsAt, n_queries: int, *, noise: float = NOISE, seed: int = 0) -> np.ndarray:
    """Unit vectors [Q, D]: stored ones drawn at random (again and again where there are few) with noise added, so that none is stored."""
    rng = np.random.default_rng(seed)
    rows_Q = np.sort(rng.choice(n, n_queries, replace=n < n_queries))
    near_QD = rng.permutation(unit(vectors_at(rows_Q)))
    return unit(near_QD + rng.standard_normal(near_QD.shape, dtype=np.float32) * np.float32(noise / np.sqrt(dim)))


def exact_cosines(q_QD: np.ndarray, k: int, n: int, vectors_at: VectorsAt) -> np.ndarray:
    """Cosines of each query's k nearest of n vectors, best first, float32 [Q, K]: every one is compared, block by block."""
    import faiss

    best_QK = np.full((len(q_QD), k), -2.0, dtype=np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        z_ND = unit(vectors_at(np.arange(start, min(n, start + ROWS_AT_ONCE))))
        found_QK, _ = faiss.knn(q_QD, z_ND, min(k, len(z_ND)), metric=faiss.METRIC_INNER_PRODUCT)
        best_QK = -np.sort(-np.concatenate([best_QK, found_QK], axis=1), axis=1)[:, :k]
    return best_QK


def milliseconds(nearest: Nearest, q_QD: np.ndarray) -> tuple[float, float]:
    """Time a query takes, searched alone and in batches of 64, after one call to warm up and for five seconds at most; as many threads as
    faiss has now.
    """
    q_QD = np.ascontiguousarray(q_QD)
    nearest.search(q_QD[:1], NEIGHBOURS)
    times = []
    for size in (1, _BATCH):
        done, start = 0, time.perf_counter()
        while done < len(q_QD) and time.perf_counter() - start < _SECONDS:
            done += len(nearest.search(q_QD[done : done + size], NEIGHBOURS)[0])
        times.append((time.perf_counter() - start) / done * 1000)
    return times[0], times[1]


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it faiss uses one thread."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _recall(nearest: Nearest, q_QD: np.ndarray, true_QK: np.ndarray) -> float:
    """Share of the true neighbours found; of several at the same cosine one is as good as another."""
    k = true_QK.shape[1]
    scores_QK, rows_QK = nearest.search(np.ascontiguousarray(q_QD), k)
    return float(((scores_QK >= true_QK[:, -1:] - _SAME) & (rows_QK >= 0)).mean())
