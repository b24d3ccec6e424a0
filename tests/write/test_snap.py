"""Plans on the manifold: the mean of the nearest stored sentences, never the same nearest one twice; denoised; worded and encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from lsm.decode.phrase_store import PhraseStore
from lsm.latent.settings import ModelSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.write.snap import Denoiser, Neighbours, Words

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


def test_the_denoiser_goes_halfway_to_what_is_restored_in_the_plans_place() -> None:
    torch.manual_seed(0)
    model = LatentTransformer(LatentConfig(dim=DIM, model=ModelSettings(hidden=16, layers=1, heads=2, context=8))).eval()
    read_SD = torch.randn(12, DIM)
    plan_D = torch.nn.functional.normalize(torch.randn(DIM), dim=0)
    snapped_D = Denoiser(model)(plan_D, read_SD)
    before_SD = torch.cat([read_SD, plan_D[None]])
    row_SD = torch.cat([before_SD, model.predict(before_SD[None, -8:])[0, -1:]])[-8:]
    hidden_S = torch.tensor([False] * 6 + [True, False])
    row_SD[6] = 100.0  # hidden: what stands there must not matter
    restored_D = model.normaliser.inverse(model.restore(row_SD[None], hidden_S[None]))[0, 6]
    wanted_D = torch.nn.functional.normalize(plan_D + torch.nn.functional.normalize(restored_D, dim=0), dim=0)
    torch.testing.assert_close(snapped_D, wanted_D, rtol=0, atol=1e-5)


class Sayer:
    name, encoder, encoder_calls_per_sentence = "sayer", {}, 0.0

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        return ["" if z_D[0] < 0 else str(int(z_D.argmax())) for z_D in z_BD]

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        return [[text] for text in self.decode(z_BD)]


def test_words_give_the_encoding_of_what_was_written_or_the_plan() -> None:
    snap = Words(Sayer(), lambda texts: 2 * np.eye(DIM, dtype=np.float32)[[int(text) for text in texts]])
    assert snap(torch.tensor([0.1, 0.0, 0.9, 0.0, 0.0, 0.0]), NOTHING).tolist() == [0, 0, 1, 0, 0, 0]
    silent_D = torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert torch.equal(snap(silent_D, NOTHING), silent_D)
