"""The kinds of nearest-neighbour index (faiss): which for how many vectors, what it costs, and how it is filled in bounded memory.

Shape letters: B vectors of a block, D vector width, N vectors of the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lsm.decode.vectors import unit
from lsm.errors import UserError
from lsm.progress import Progress, say

Kind = Literal["flat", "hnsw", "ivf-pq"]
Wanted = Literal["auto", "flat", "hnsw", "ivf-pq"]
VectorsAt = Callable[[np.ndarray], np.ndarray]
"""Numbers of vectors, int64 [B] → the vectors [B, D], of any length and precision."""
ROWS_AT_ONCE = 16384
FLAT_UP_TO = 200_000
"""Vectors up to which every one is compared."""
HNSW_UP_TO = 500_000
"""Vectors up to which a graph is built: that takes a millisecond of a core for each, cells and codes a tenth of it."""
_LINKS, _BREADTH = 32, 40
_PER_CELL, _MOST_CELLS = 40, 16384
"""Training vectors a cell (faiss asks for 39) and the most cells: together they bound the training sample."""
FEWEST_FOR_CODES = 16
_TIMED_SIZE = 1024


@dataclass(frozen=True)
class Choice:
    """A kind of index and why it was taken."""

    kind: Kind
    reason: str


def choose(n: int, wanted: Wanted = "auto") -> Choice:
    """The kind of index for n vectors."""
    if wanted != "auto":
        return Choice(wanted, "asked for")
    if n <= FLAT_UP_TO:
        return Choice("flat", f"exact; at most {FLAT_UP_TO:,} are compared one by one")
    if n <= HNSW_UP_TO:
        return Choice("hnsw", f"a graph; more than {FLAT_UP_TO:,} and at most {HNSW_UP_TO:,}")
    return Choice("ivf-pq", f"cells of short codes; more than {HNSW_UP_TO:,}")


@dataclass(frozen=True)
class Effort:
    """How hard an approximate index is searched."""

    breadth: int
    """Cells probed (ivf-pq), or candidates that a walk through the graph keeps (hnsw)."""
    per_neighbour: int
    """Candidates that are compared exactly for each neighbour asked for."""

    def candidates(self, k: int) -> int:
        """How many candidates k neighbours are chosen from."""
        return max(self.per_neighbour * k, 32)


def efforts(kind: Kind) -> list[Effort]:
    """What may be tried for an approximate kind, the least first."""
    if kind == "hnsw":
        return [Effort(32, 4), Effort(64, 4), Effort(128, 8), Effort(256, 16), Effort(512, 32)]
    # More candidates find no more (at a million vectors 400, 1,000 and 2,000 do what 140 do): what is missed lies in other cells.
    return [*(Effort(breadth, 14) for breadth in (16, 32, 64, 128, 256, 512, 1024)), Effort(2048, 40)]


def n_cells(n: int) -> int:
    """Cells of an inverted file over n vectors: the power of two nearest to √n that leaves each its training vectors."""
    return min(2 ** round(np.log2(n) / 2), 2 ** int(np.log2(max(1, n // _PER_CELL))), _MOST_CELLS)


@dataclass(frozen=True)
class Cost:
    """What an index is estimated to cost."""

    build_bytes: int
    """Memory at the peak of building, beside the texts of one shard."""
    open_bytes: int
    """Memory of the open index, beside the texts; memory-mapped vectors are not counted."""
    disk_bytes: int
    seconds: float


def cost(kind: Kind, n: int, dim: int) -> Cost:
    """Costs for n vectors; the time goes by how fast this machine multiplies matrices at the moment (measured in a tenth of a second)."""
    blocks = 4 * ROWS_AT_ONCE * dim * 4
    rate = _operations_a_second()
    if kind == "flat":
        size = n * dim * 4
        return Cost(size + blocks, size, size, n * dim * 400 / rate)
    if kind == "hnsw":
        size = n * (2 * dim + 8 * _LINKS + 16)
        return Cost(size + blocks, size, size + 2 * n * dim, n * dim * np.log2(max(n, 2)) * 5000 / rate)
    cells = n_cells(n)
    sample = _sample_size(n, cells)
    size = n * (_code_bytes(dim) + 8) + cells * dim * 4
    operations = (10 * sample + n) * cells * 2 * dim + n * dim * 3500 + sample * dim * 2000
    return Cost(2 * size + 2 * sample * dim * 4 + blocks, size, size + 2 * n * dim, operations / rate)


def require_enough(kind: Kind, n: int) -> None:
    """Raise `UserError` where n vectors are too few for a kind."""
    if kind == "ivf-pq" and n < FEWEST_FOR_CODES:
        raise UserError(f"--index ivf-pq: {n} vectors are too few to learn codes from (at least {FEWEST_FOR_CODES}); use --index flat")


def empty_index(kind: Kind, n: int, dim: int) -> Any:
    """A faiss index of a kind for n vectors, empty and (where it has to be) untrained; room for them is taken at once."""
    import faiss

    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
        _reserve(index, n)
    elif kind == "hnsw":
        index = faiss.index_factory(dim, f"HNSW{_LINKS},SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BREADTH
        index.train(np.eye(1, dim, dtype=np.float32))  # nothing is learned, but faiss wants the call
        _reserve(faiss.downcast_index(index.storage), n)
    else:
        # Codes of 4 bits, because faiss scans those in registers; what they blur is compared exactly afterwards.
        index = faiss.index_factory(dim, f"IVF{n_cells(n)},PQ{dim // 2 if dim % 2 == 0 else dim}x4fs", faiss.METRIC_INNER_PRODUCT)
    return index


def build_index(
    kind: Kind, n: int, dim: int, vectors_at: VectorsAt, *, what: str, stand_in: Callable[[Any], Any] | None = None, quiet: bool = True
) -> Any:
    """A faiss index over n vectors, made unit; `vectors_at` is asked for a sample of them, then for blocks in their order.

    Args:
        stand_in: makes a copy of a flat index, on a GPU (`gpu_copies`), by which the cells of an inverted file are learned and found.

    Raises:
        UserError: too few vectors for codes.
    """
    import faiss

    require_enough(kind, n)
    index = empty_index(kind, n, dim)
    cells = getattr(index, "quantizer", None)
    if cells is not None:
        size = _sample_size(n, index.nlist)
        say(f"learning {index.nlist:,} cells and their codes from {size:,} of the vectors", quiet=quiet)
        sample_ND = np.empty((size, dim), dtype=np.float32)
        places = np.arange(size) * n // size
        for start in range(0, size, ROWS_AT_ONCE):
            stop = min(size, start + ROWS_AT_ONCE)
            sample_ND[start:stop] = unit(vectors_at(places[start:stop]))
        if stand_in is not None:
            index.clustering_index = stand_in(faiss.IndexFlatIP(dim))
        index.train(sample_ND)
        del sample_ND
        index.clustering_index = None
        if stand_in is not None:
            index.quantizer = stand_in(cells)
    with Progress("phrase store", n, what, quiet=quiet) as progress:
        for start in range(0, n, ROWS_AT_ONCE):
            places = np.arange(start, min(n, start + ROWS_AT_ONCE))
            index.add(unit(vectors_at(places)))
            progress.advance(len(places))
    if cells is not None:
        index.quantizer = cells
    return index


def gpu_copies(wanted: str) -> tuple[Callable[[Any], Any] | None, str]:
    """What copies a flat index to the GPU of --device (None: there is none, or it is not wanted), and where an index is built and why.

    Raises:
        UserError: faiss sees fewer GPUs.
    """
    import faiss

    if wanted.split(":")[0] not in ("auto", "cuda"):
        return None, "on the CPU (asked for)"
    n_gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if not n_gpus:
        return None, "on the CPU (this faiss has no GPU)"
    number = int(wanted.partition(":")[2] or 0)
    if number >= n_gpus:
        raise UserError(f"--device {wanted}: faiss sees {n_gpus} GPUs, counted from 0")
    resources = faiss.StandardGpuResources()
    return lambda flat: faiss.index_cpu_to_gpu(resources, number, flat), f"cells on GPU {number} (faiss-gpu)"


def _sample_size(n: int, cells: int) -> int:
    return min(n, max(cells * _PER_CELL, 4096))


def _code_bytes(dim: int) -> int:
    return dim // 4 if dim % 2 == 0 else -(-dim // 2)


def _reserve(index: Any, n: int) -> None:
    """Take the room for n vectors at once: growing step by step would hold them twice."""
    index.codes.resize(n * index.code_size)
    index.codes.resize(0)


def _operations_a_second() -> float:
    a = np.ones((_TIMED_SIZE, _TIMED_SIZE), dtype=np.float32)
    a @ a
    start = time.perf_counter()
    a @ a
    return 2 * _TIMED_SIZE**3 / (time.perf_counter() - start)
