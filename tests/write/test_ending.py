"""Endings: learned from a store whose documents end alike, silent on other sentences, refused where there are too few documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from lsm.decode.phrase_store import PhraseStore
from lsm.errors import UserError
from lsm.write.ending import Ending

DIM = 16


def store(n_documents: int, *, cells: bool = False, seed: int = 0) -> PhraseStore:
    """Documents of 20 random sentences whose last lies near the first axis."""
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(seed)
    z_ND = rng.standard_normal((n_documents, 20, DIM)).astype(np.float32)
    z_ND[:, :, 0] = -abs(z_ND[:, :, 0])
    z_ND[:, -1, 0] = 6
    z_ND = (z_ND / np.linalg.norm(z_ND, axis=-1, keepdims=True)).reshape(-1, DIM)
    index: Any = faiss.index_factory(DIM, "IVF4,SQfp16", faiss.METRIC_INNER_PRODUCT) if cells else faiss.IndexFlatIP(DIM)
    if cells:
        index.train(z_ND)
    index.add(z_ND)
    texts = [f"sentence {n}" for n in range(len(z_ND))]
    return PhraseStore(index, pa.table({"text": texts, "doc_id": [f"d{n // 20}" for n in range(len(z_ND))]}), {"name": "stub", "dim": DIM})


@pytest.mark.parametrize("cells", [False, True])
def test_last_sentences_are_told_from_others_of_unseen_documents(cells: bool) -> None:
    ending, unseen = Ending.of(store(40, cells=cells)), store(40, seed=1)
    ends = np.array([ending(torch.from_numpy(z_D)) for z_D in unseen.vectors(np.arange(len(unseen)))]).reshape(40, 20)
    assert ends[:, -1].mean() > 0.9 and ends[:, :-1].any(1).mean() < 0.3


def test_a_store_of_few_documents_is_refused() -> None:
    with pytest.raises(UserError, match="of 9 documents"):
        Ending.of(store(9))


def test_the_store_numbers_its_documents_and_gives_vectors_back() -> None:
    some = store(3, cells=True)
    assert some.documents().tolist() == [n // 20 for n in range(60)]
    rows, _, found_KD = some.neighbours(some.vectors(np.array([7])), 1)
    assert rows.tolist() == [7]
    np.testing.assert_allclose(found_KD, some.vectors(np.array([7])), atol=2e-3)
