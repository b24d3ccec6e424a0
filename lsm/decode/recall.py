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
COPIES, SAME_SENTENCE = 64, 0.75
"""A query that stands for an unseen sentence is a stored vector whose copies, itself and all above this cosine, count as not stored; one
with more copies is no query."""
TARGET, WANTED = 0.97, 0.95
"""Recall that the effort is chosen for, and the recall below which a store says so: the first leaves room for chance."""
_BATCH = 64
_SECONDS = 5.0
_SAME = 1e-6


@dataclass(frozen=True)
class Measured:
    """What was measured; recall on other queries than those that the effort was chosen by."""

    recall_at_10: float
    """Share of the ten nearest (exact cosine) that are found, of stored vectors under noise."""
    n_queries: int
    noise: float
    recall_at_10_unseen: float | None
    """The same of stored vectors without their copies, as if they were not stored; None = the store is too small or all copies."""
    n_queries_unseen: int
    milliseconds_one_by_one: float
    """A query, searched alone, on one thread."""
    milliseconds_in_batches_of_64: float
    """A query, 64 searched at once, on one thread."""

    @property
    def least_recall(self) -> float:
        """The lower of the two."""
        return min(self.recall_at_10, 1.0 if self.recall_at_10_unseen is None else self.recall_at_10_unseen)

    def line(self) -> str:
        """For a person."""
        unseen = ""
        if self.recall_at_10_unseen is not None:
            unseen = f", {self.recall_at_10_unseen:.3f} on {self.n_queries_unseen} like unseen ones (stored, but for all that is near them)"
        return (
            f"recall@{NEIGHBOURS} {self.recall_at_10:.3f} on {self.n_queries} queries (stored vectors and noise of length {self.noise})"
            f"{unseen}; {self.milliseconds_one_by_one:.2f} ms a query alone, {self.milliseconds_in_batches_of_64:.2f} ms in batches of "
            f"{_BATCH}, one thread"
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {key: value if value is None else round(value, 4) for key, value in asdict(self).items()}


def tune_and_measure(nearest: Nearest, kind: Kind, n: int, dim: int, vectors_at: VectorsAt, *, seed: int = 0) -> Measured:
    """Set the least effort that finds `TARGET` of the true neighbours of both sorts of queries (or the most there is), then measure on
    others.

    Args:
        vectors_at: the n vectors that the index was built over; an approximate index is compared with all of them, in one pass.
    """
    q_QD = make_queries(n, dim, vectors_at, QUERIES if kind == "flat" else 2 * QUERIES, seed=seed)
    k = min(NEIGHBOURS, n)
    judged = slice(None)
    recall, unseen, n_unseen = 1.0, None, 0
    with one_thread():
        if kind != "flat":
            u_QD = unit(vectors_at(np.sort(np.random.default_rng([seed, 1]).choice(n, min(n, 2 * QUERIES), replace=False))))
            near_QK = exact_cosines(np.concatenate([q_QD, u_QD]), min(COPIES + k, n), n, vectors_at)
            true_QK = near_QK[: len(q_QD), :k]
            u_QD, beyond_QK = _without_copies(u_QD, near_QK[len(q_QD) :], k)
            chosen_by, judged = slice(0, None, 2), slice(1, None, 2)
            for effort in efforts(kind):
                nearest.set_effort(effort)
                found = _recall_unseen(nearest, u_QD[chosen_by], beyond_QK[chosen_by])
                if (found is None or found >= TARGET) and _recall(nearest, q_QD[chosen_by], true_QK[chosen_by]) >= TARGET:
                    break
            recall = _recall(nearest, q_QD[judged], true_QK[judged])
            unseen, n_unseen = _recall_unseen(nearest, u_QD[judged], beyond_QK[judged]), len(u_QD[judged])
        alone, together = milliseconds(nearest, q_QD[judged])
    return Measured(recall, len(q_QD[judged]), NOISE, unseen, n_unseen, alone, together)


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


def _without_copies(q_QD: np.ndarray, near_QK: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of the queries that have k neighbours beyond their copies among the nearest K, and the cosines of those k."""
    beyond = [near_K[near_K < SAME_SENTENCE][:k] for near_K in near_QK]
    kept = [number for number, cosines in enumerate(beyond) if len(cosines) == k]
    return q_QD[kept], np.array([beyond[number] for number in kept], dtype=np.float32).reshape(len(kept), k)


def _recall_unseen(nearest: Nearest, q_QD: np.ndarray, true_QK: np.ndarray) -> float | None:
    """Share of the true neighbours beyond the copies that are found. Copies take places among the candidates, as nothing would have of an
    unseen query's: if anything, this is too low."""
    if not len(q_QD):
        return None
    assert nearest.effort is not None
    n_candidates = min(nearest.effort.candidates(NEIGHBOURS), nearest.index.ntotal)
    _, rows_QC = nearest.index.search(np.ascontiguousarray(q_QD), n_candidates)
    hits = 0
    for q_D, rows_C, true_K in zip(q_QD, rows_QC, true_QK, strict=True):
        cosine_C = nearest.vectors(rows_C[rows_C >= 0]) @ q_D
        beyond_C = cosine_C[cosine_C < SAME_SENTENCE]
        hits += min(int((beyond_C >= true_K[-1] - _SAME).sum()), len(true_K))
    return hits / true_QK.size
