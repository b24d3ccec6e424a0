"""Nearest vectors by cosine: a faiss index, and where that is approximate an exact comparison of the candidates it names.

Shape letters: B queries, D vector width, K neighbours, C candidates, N vectors asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lsm.decode.index_kinds import Effort, VectorsAt
from lsm.decode.vectors import unit

NONE_SCORE = float(np.finfo(np.float32).min)
"""What faiss scores a neighbour that there is not (row −1)."""


class Nearest:
    """A faiss index of unit vectors with, for approximate kinds, the vectors themselves to rank its candidates by.

    Args:
        index: the faiss index, inner product.
        vectors_at: the stored vectors of rows, usually a memory-mapped file; None = what the index says is final.
        effort: how many candidates are ranked; needed with `vectors_at`.
    """

    def __init__(self, index: Any, vectors_at: VectorsAt | None = None, effort: Effort | None = None) -> None:
        assert (vectors_at is None) == (effort is None)
        self.index, self.vectors_at, self.effort = index, vectors_at, effort

    def set_effort(self, effort: Effort) -> None:
        """Search as hard as that from now on; the index keeps its part when it is written."""
        self.effort = effort
        if hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = effort.breadth
        else:
            self.index.nprobe = min(effort.breadth, self.index.nlist)

    def search(self, q_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines float32 and rows int64 of the k nearest of each query (unit vectors), [B, K], best first; row −1 = no more were found."""
        if self.vectors_at is None or self.effort is None:
            return self.index.search(q_BD, k)
        _, rows_BC = self.index.search(q_BD, min(self.effort.candidates(k), self.index.ntotal))
        scores_BK = np.full((len(q_BD), k), NONE_SCORE, dtype=np.float32)
        rows_BK = np.full((len(q_BD), k), -1, dtype=np.int64)
        for b, q_D in enumerate(q_BD):
            rows_C = np.sort(rows_BC[b][rows_BC[b] >= 0])  # rising rows are read faster, and equal cosines keep their order
            score_C = unit(self.vectors_at(rows_C)) @ q_D
            best_K = np.argsort(-score_C, kind="stable")[:k]
            scores_BK[b, : len(best_K)], rows_BK[b, : len(best_K)] = score_C[best_K], rows_C[best_K]
        return scores_BK, rows_BK

    def search_and_vectors(self, q_1D: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `search` for one query, with the vectors [1, K, D] that its rows stand for."""
        if self.vectors_at is None:
            return self.index.search_and_reconstruct(q_1D, k)
        scores_1K, rows_1K = self.search(q_1D, k)
        return scores_1K, rows_1K, unit(self.vectors_at(np.maximum(rows_1K[0], 0)))[None]

    def vectors(self, rows_N: np.ndarray) -> np.ndarray:
        """Unit vectors of rows, float32 [N, D]."""
        import faiss

        if self.vectors_at is not None:
            return unit(self.vectors_at(np.asarray(rows_N, dtype=np.int64)))
        if isinstance(self.index, faiss.IndexIVF):
            self.index.make_direct_map()
        return unit(self.index.reconstruct_batch(np.ascontiguousarray(rows_N, dtype=np.int64)))
