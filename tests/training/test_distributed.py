"""Promises of training in several processes (dropout 0): the losses of one, moves from one number to another, one stop for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lsm.config import settings_from
from lsm.corpus.sampler import ArrayDocuments
from lsm.errors import UserError
from lsm.files import sha256_file
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import PretrainSettings
from lsm.training.distributed import Ranks, joined
from lsm.training.loop import Trainer
from lsm.training.metrics import read_metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    subprocess.run([sys.executable, str(Path(__file__).parent / "processes.py"), str(folder)], check=True, env=environment)
    return folder, json.loads((folder / "results.json").read_text())


def losses(run: Path, steps: int) -> np.ndarray:
    rows = [row for row in read_metrics(run) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    return np.array([[row[name] for name in ("loss", "mse", "infonce", "in_document", "denoise", "ahead")] for row in rows])


@pytest.mark.parametrize("name", ["ddp", "fsdp", "moved"])
def test_two_processes_train_as_one(trained: tuple[Path, dict[str, list[str]]], name: str) -> None:
    folder, results = trained
    assert results["one"] == ["done"] and results["ddp"] == results["fsdp"] == results["moved on to None"] == ["done", "done"]
    one, two = losses(folder / "one", 50), losses(folder / name, 50)
    assert one[-1, 0] < 0.9 * one[0, 0]
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    final, other = (load_file(folder / run / "final/model.safetensors") for run in ("one", name))
    assert final.keys() == other.keys()
    for key, value in final.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4)
    evaluations = [read_metrics(folder / run)[-1]["evaluation"] for run in ("one", name)]
    assert evaluations[1] == pytest.approx(evaluations[0], rel=1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_gradients_are_accumulated_over_batches_and_processes(trained: tuple[Path, dict[str, list[str]]], name: str) -> None:
    one, two = (losses(trained[0] / f"{kind}, accumulated", 3) for kind in ("one", name))
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)


def test_each_process_writes_its_own_part(trained: tuple[Path, dict[str, list[str]]]) -> None:
    folder, results = trained
    assert results["moved on to 12"] == ["interrupted"] * 2 and results["moved on to 24"] == ["interrupted"]
    step = folder / "fsdp/step-00000050"
    assert {path.name for path in step.iterdir()} == {"model", "optimizer", "ema", "state.json", "done.json"}
    assert [len(list((step / part).iterdir())) for part in ("model", "optimizer", "ema")] == [2, 2, 2]
    assert all(file.suffix == ".safetensors" for file in step.glob("*/*")), "something else, which might have to be unpickled"
    assert (folder / "ddp/step-00000050/model.safetensors").exists()
    assert not list(folder.glob("*/.lock")) and len((folder / "ddp/sessions.jsonl").read_text().splitlines()) == 1


def test_nan_in_one_process_stops_all_before_the_update(trained: tuple[Path, dict[str, list[str]]]) -> None:
    first, second = trained[1]["nan"]
    assert (
        first == second and "loss is not finite at step 1 " in first and "documents document " in first and first.endswith("unchanged=True")
    )


def small(**changes: object) -> PretrainSettings:
    raw = {
        "steps": 6, "eval_every": 6, "save_every": 6, "threads": 1, "precision": "float32", "optimizer": {"warmup_steps": 1},
        "model": {"context": 8, "hidden": 16, "layers": 2, "heads": 2, "dropout": 0.2},
        "data": {"batch_sentences": 64, "held_out_fraction": 0.2},
    }  # fmt: skip
    return settings_from(PretrainSettings, raw | changes, origin="test")


def task(config: PretrainSettings, ranks: Ranks | None = None) -> Pretraining:
    generator = np.random.default_rng(0)
    source = ArrayDocuments([generator.standard_normal((4 + n % 5, 8)).astype(np.float16) for n in range(30)])
    return Pretraining(source, config, dim=8, ranks=ranks or Ranks())


def test_processes_share_rows_queries_and_losses() -> None:
    config = small(model={"context": 8, "hidden": 16, "layers": 1, "heads": 2, "dropout": 0.0}, data={"batch_sentences": 64, "noise": 0.1})
    alone = task(config)
    shares = [task(config, Ranks(rank, 2)) for rank in range(2)]
    assert sum(len(share.batch(3).source_N) for share in shares) == len(alone.batch(3).source_N)
    assert float(torch.stack([share.loss(share.batch(3))[0].detach() for share in shares]).mean()) == pytest.approx(
        float(alone.loss(alone.batch(3))[0].detach()), abs=1e-5
    )


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match=r"batch-sentences 64 makes 8 rows .* 3 processes cannot share evenly"):
        task(small(), Ranks(0, 3))
    with pytest.raises(UserError, match=r"denoise-rows 0\.25 of 8 rows are 2, which 4 processes"):
        task(small(), Ranks(0, 4))


def test_a_gpu_named_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cuda:1: 2 processes"), joined(torch.device("cuda:1")):
        pass


def test_a_task_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process; start it without torchrun"):
        Trainer(task(small()), small(), tmp_path / "run", quiet=True)


def test_checkpointed_activations_change_no_bit(tmp_path: Path) -> None:
    for name, config in (("kept", small()), ("again", small(checkpoint_activations=True))):
        Trainer(task(config), config, tmp_path / name, quiet=True).train()
    for file in ("metrics.jsonl", "final/model.safetensors", "run.json"):
        assert sha256_file(tmp_path / "kept" / file) == sha256_file(tmp_path / "again" / file)


def test_compile_away_from_a_gpu_is_refused(tmp_path: Path) -> None:
    config = small(compile=True)
    with pytest.raises(UserError, match="--compile pays on CUDA only"):
        Trainer(task(config), config, tmp_path / "run", quiet=True)


def test_throughput_is_kept_beside_the_metrics(tmp_path: Path) -> None:
    config = small()
    trained = task(config)
    Trainer(trained, config, tmp_path / "run", quiet=True).train()
    row = json.loads((tmp_path / "run/sessions.jsonl").read_text())
    assert row["processes"] == 1 and row["sentences"] == sum(trained.batch(index).packed.n_sentences for index in range(6))
    per_second = trained.flops_per_step() / row["step_seconds"]
    assert row["mfu"] == pytest.approx(per_second / row["matmul_flops_per_second"], rel=0.05, abs=1e-4)
    assert row["documents_per_second"] == pytest.approx(row["sentences_per_second"] * row["documents"] / row["sentences"], rel=0.01)
