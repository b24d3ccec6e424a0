"""Plans on the manifold: the mean of the nearest stored sentences, and never the same nearest one twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from lsm.decode.phrase_store import PhraseStore
from lsm.write.snap import Neighbours

DIM = 6
NOTHING = torch.zeros(0, DIM)


def store(vectors: np.ndarray) -> PhraseStore:
    faiss = pytest.importorskip("faiss")
    index: Any = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    texts = [f"sentence {n}" for n in range(len(vectors))]
    return PhraseStore(index, pa.table({"text": texts, "doc_id": ["a"] * len(texts)}), {"name": "stub", "dim": DIM})


def test_one_neighbour_is_the_nearest_sentence_then_the_next() -> None:
    stored = np.eye(DIM, dtype=np.float32)[:3]
    plan_D = torch.tensor([0.9, 0.4, 0.1, 0.0, 0.0, 0.0])
    snap = Neighbours(store(stored), 1)
    assert [int(snap(plan_D, NOTHING).argmax()) for _ in range(3)] == [0, 1, 2]
    assert torch.equal(snap(plan_D, NOTHING), plan_D), "nothing is left to snap to"


def test_mean_of_several_is_weighted_by_cosine_and_of_unit_length() -> None:
    stored = np.eye(DIM, dtype=np.float32)
    plan_D = torch.tensor([0.8, 0.6, 0.0, 0.0, 0.0, 0.0])
    snapped_D = Neighbours(store(stored), 2)(plan_D, NOTHING)
    weights = np.exp(np.array([0.8, 0.6]) / 0.05)
    expected = torch.zeros(DIM)
    expected[:2] = torch.from_numpy(weights / np.linalg.norm(weights)).float()
    torch.testing.assert_close(snapped_D, expected, rtol=1e-4, atol=1e-5)


def test_a_store_in_cells_snaps_too() -> None:
    faiss = pytest.importorskip("faiss")
    stored = torch.nn.functional.normalize(torch.randn(400, DIM, generator=torch.Generator().manual_seed(0)), dim=-1).numpy()
    cells: Any = faiss.index_factory(DIM, "IVF4,SQfp16", faiss.METRIC_INNER_PRODUCT)
    cells.train(stored)
    cells.add(stored)
    cells.nprobe = 4
    texts = pa.table({"text": ["a"] * 400, "doc_id": ["a"] * 400})
    plan_D = torch.from_numpy(stored[7])
    snapped_D = Neighbours(PhraseStore(cells, texts, {"name": "stub", "dim": DIM}), 3)(plan_D, NOTHING)
    torch.testing.assert_close(snapped_D, Neighbours(store(stored), 3)(plan_D, NOTHING), rtol=0, atol=2e-3)
