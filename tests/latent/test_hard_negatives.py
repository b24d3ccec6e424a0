"""Promises of hard negatives: the right ones by definition, nothing else changed, one batch for any processes, found once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsm.config import settings_from
from lsm.corpus.sampler import ArrayDocuments, split_documents
from lsm.errors import UserError
from lsm.files import sha256_file
from lsm.latent import hard_negatives
from lsm.latent.hard_negatives import NOBODY, Neighbours
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import ObjectiveSettings, PretrainSettings
from lsm.training.distributed import Ranks
from lsm.training.loop import PREPARED, Trainer

DIM, NEAR, MOST = 6, 8, 0.97


def documents() -> ArrayDocuments:
    """Few subjects, so that neighbours are near; some sentences stand in several documents, some nearly."""
    generator = np.random.default_rng(0)
    subjects = generator.standard_normal((5, DIM))
    vectors = [(subjects[n % 5] + 0.6 * generator.standard_normal((4 + n % 9, DIM))).astype(np.float16) for n in range(30)]
    for n in range(0, 30, 3):
        vectors[n][1] = vectors[(n + 10) % 30][2]
        vectors[n][2] = vectors[n + 1][3] + 0.02
    return ArrayDocuments(vectors, parts=(generator.random(sum(map(len, vectors))) < 0.1).astype(np.int32))


def unit_rows(source: ArrayDocuments) -> np.ndarray:
    z_RD = np.concatenate([source.vectors(doc) for doc in range(len(source.doc_ids))]).astype(np.float32)
    return z_RD / np.linalg.norm(z_RD, axis=1, keepdims=True)


def neighbours_of(source: ArrayDocuments) -> Neighbours:
    unit_RD = unit_rows(source)

    def neighbours(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        cosine_BR = unit_RD[rows] @ unit_RD.T
        order_BK = np.argsort(-cosine_BR, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(cosine_BR, order_BK, 1), order_BK

    return neighbours


def settings(hard: int = 2, *, steps: int = 30, dropout: float = 0.0, **goals: Any) -> PretrainSettings:
    raw: dict[str, Any] = {
        "steps": steps, "eval_every": steps, "save_every": 10, "threads": 1, "precision": "float32", "ema_decay": 0.8,
        "optimizer": {"lr": 3e-3, "warmup_steps": 3},
        "model": {"context": 8, "hidden": 16, "layers": 1, "heads": 2, "dropout": dropout},
        "objectives": {"in_document": 0.3, "hard_negatives": hard, "hard_negatives_near": NEAR, "hard_negatives_most": MOST} | goals,
        "data": {"batch_sentences": 64, "held_out_fraction": 0.2, "context_dropout": 0.1, "noise": 0.1},
    }  # fmt: skip
    return settings_from(PretrainSettings, raw, origin="test")


def task(config: PretrainSettings, folder: Path | None = None, *, neighbours: Neighbours | None = None) -> Pretraining:
    source = documents()
    if config.objectives.hard_negatives == 0:
        return Pretraining(source, config, dim=DIM)
    made = Pretraining(source, config, dim=DIM, neighbours=neighbours or neighbours_of(source), index="made up")
    if folder is not None:
        made.prepare(folder, quiet=True)
    return made


def documents_of_rows(source: ArrayDocuments) -> np.ndarray:
    return np.repeat(np.arange(len(source.doc_ids)), np.diff(source.starts))


@pytest.mark.parametrize("goals", [{}, {"later_pieces": False}, {"in_document": 0, "in_document_negatives": False}])
def test_neighbours_by_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goals: dict[str, Any]) -> None:
    monkeypatch.setattr(hard_negatives, "_ROWS_AT_ONCE", 50)
    monkeypatch.setattr(hard_negatives, "_SEARCHED", 100)  # all of them
    source, config = documents(), settings(**goals)
    table = task(config, tmp_path)._hard
    assert table is not None
    z_RD, unit_RD, document_R = np.concatenate(source._vectors), unit_rows(source), documents_of_rows(source)
    trained, _ = split_documents(source.doc_ids, 0.2)
    times = {z_D.tobytes(): sum((z_RD == z_D).all(1)) for z_D in z_RD}
    assert max(times.values()) > 1
    seen_alike = 0
    for row, doc in enumerate(document_R):
        expected = []
        for other in np.argsort(-(unit_RD @ unit_RD[row]), kind="stable"):
            read = document_R[other] == doc and (other <= row or not config.objectives.in_document_negatives)
            target = config.objectives.later_pieces or source.column("part")[other] == 0
            if document_R[other] in trained and times[z_RD[other].tobytes()] == 1 and not read and target and other != row:
                expected.append(other)
        expected = expected[:NEAR]
        if doc not in trained or not (config.objectives.later_pieces or source.column("part")[row] == 0):
            expected = []
        assert table._near_RK[row].tolist() == expected + [NOBODY] * (NEAR - len(expected))
        assert table._alike_R[row] == (unit_RD[expected] @ unit_RD[row] > MOST).sum()
        seen_alike += table._alike_R[row]
    assert seen_alike > 5


def test_drawn_ones_are_blocked_by_definition(tmp_path: Path) -> None:
    source, made = documents(), task(settings(), tmp_path)
    unit_RD, document_R = unit_rows(source), documents_of_rows(source)
    z_RD = np.concatenate(source._vectors)
    _, held_out = split_documents(source.doc_ids, 0.2)
    blocked_as = {"free": 0, "read": 0, "alike": 0}
    for index in range(6):
        batch = made.batch(index)
        row_id = batch.packed.row_id_BS.reshape(-1)
        target_M, read_N = row_id[batch.target_N.numpy()], row_id[batch.source_N.numpy()]
        n_targets = len(target_M)
        assert torch.equal(batch.own_N, torch.arange(n_targets))
        z_XD, document_X = batch.candidate_MD[n_targets:].numpy(), batch.document_M[n_targets:].numpy()
        row_X = np.array([int(np.flatnonzero((z_RD == z_D).all(1))[0]) for z_D in z_XD])  # they stand once
        assert 0 < len(row_X) <= 2 * n_targets and len(set(row_X)) == len(row_X) and not set(row_X) & set(target_M)
        np.testing.assert_array_equal(document_X, document_R[row_X])
        assert not np.isin(document_X, held_out).any()
        for n, (target, read) in enumerate(zip(target_M, read_N, strict=True)):
            assert not (z_XD == z_RD[target]).all(1).any()
            for x, row in enumerate(row_X):
                is_read = document_R[row] == document_R[target] and row <= read
                alike = unit_RD[row] @ unit_RD[target] > MOST
                assert batch.blocked_NM[n, n_targets + x] == (is_read or alike)
                blocked_as["read" if is_read else "alike" if alike else "free"] += 1
    assert min(blocked_as.values()) > 0, blocked_as


def test_nothing_else_of_a_batch_and_no_evaluation_changes(tmp_path: Path) -> None:
    plain, hard = task(settings(0)), task(settings(), tmp_path)
    one, other = plain.batch(3), hard.batch(3)
    n_targets = len(one.candidate_MD)
    for name in ("z_BSD", "target_N", "own_N", "hidden_BS", "noise_BSD", "masked_BS"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(other.candidate_MD[:n_targets], one.candidate_MD) and len(other.candidate_MD) > n_targets
    assert torch.equal(other.blocked_NM[:, :n_targets], one.blocked_NM) and torch.equal(other.document_M[:n_targets], one.document_M)
    assert float(hard.loss(other)[1]["infonce"]) > float(plain.loss(one)[1]["infonce"])  # more to choose from
    assert plain.evaluate() == hard.evaluate()
    assert hard.fingerprint()["index"] == "made up" and "index" not in plain.fingerprint()


def test_processes_share_one_batch(tmp_path: Path) -> None:
    config = settings(denoise_rows=0.5)
    alone = task(config, tmp_path / "alone")
    shares = [task(config, tmp_path / "alone") for _ in range(2)]
    for rank, share in enumerate(shares):
        share.ranks = Ranks(rank, 2)  # only now: there is nobody to wait for
    whole, parts = alone.batch(3), [share.batch(3) for share in shares]
    assert all(torch.equal(part.candidate_MD, whole.candidate_MD) for part in parts)
    assert torch.equal(
        torch.cat([part.blocked_NM for part in parts])[torch.cat([part.own_N for part in parts]).argsort()], whole.blocked_NM
    )
    losses = torch.stack([share.loss(part)[0].detach() for share, part in zip(shares, parts, strict=True)])
    assert float(losses.mean()) == pytest.approx(float(alone.loss(whole)[0].detach()), abs=1e-5)


def test_resumed_equals_unbroken_and_finds_no_neighbour_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard_negatives, "_ROWS_AT_ONCE", 50)
    config, source = settings(dropout=0.2), documents()
    Trainer(task(config), config, tmp_path / "whole", quiet=True).train()

    searched: list[int] = []

    def counted(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if len(searched) and sum(searched) > 60 and not (tmp_path / "broken" / "may").exists():
            raise KeyboardInterrupt
        searched.append(len(rows))
        return neighbours_of(source)(rows, k)

    with pytest.raises(KeyboardInterrupt):  # while it searches
        Trainer(task(config, neighbours=counted), config, tmp_path / "broken", quiet=True).train()
    (tmp_path / "broken" / "may").touch()
    broken = task(config, neighbours=counted)
    whole_batch = broken.batch
    monkeypatch.setattr(broken, "batch", lambda index: whole_batch(index) if index < 17 else (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # while it trains
        Trainer(broken, config, tmp_path / "broken", quiet=True).train()
    trained, _ = split_documents(source.doc_ids, 0.2)
    assert sum(searched) == sum(len(source.vectors(doc)) for doc in trained)
    Trainer(task(config, neighbours=counted), config, tmp_path / "broken", quiet=True).train()
    assert sum(searched) == sum(len(source.vectors(doc)) for doc in trained)
    files = [f"{PREPARED}/hard-negatives/000000050.npy", "final/model.safetensors", "final/README.md", "metrics.jsonl"]
    for name in files:
        assert sha256_file(tmp_path / "whole" / name) == sha256_file(tmp_path / "broken" / name)


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match=r"hard_negatives 40 must lie between 0 and hard_negatives_near 32"):
        ObjectiveSettings(hard_negatives=40)
    with pytest.raises(UserError, match=r"hard_negatives 2 needs a weight for infonce"):
        ObjectiveSettings(hard_negatives=2, infonce=0)
