"""Trainings in one and in two processes; run by test_distributed.py, because what has differentiated cannot be forked.

python processes.py FOLDER: writes FOLDER/results.json, {name: [what each process came to]}
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401 (what every training imports, once and not in each process)
import numpy as np
import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.utils.tensorboard

from lsm.config import settings_from
from lsm.corpus.sampler import ArrayDocuments
from lsm.errors import UserError
from lsm.latent.batch import LatentBatch
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import PretrainSettings
from lsm.training.distributed import joined
from lsm.training.loop import Trainer

DIM = 12


class Tampered(Pretraining):
    """A pretraining that is stopped at a batch, or finds one with NaN in the second row, which is the second process's."""

    stop_at: int | None = None
    nan_at: int | None = None

    def batch(self, index: int) -> LatentBatch:
        if index == self.stop_at:
            raise KeyboardInterrupt
        batch = super().batch(index)
        if index == self.nan_at and self.ranks.rank == self.ranks.size - 1:
            batch.z_BSD[0 if self.ranks.size > 1 else 1] = torch.nan
        return batch


def documents() -> ArrayDocuments:
    generator = np.random.default_rng(0)
    vectors = [generator.standard_normal((2 + n % 11, DIM)).cumsum(0).astype(np.float16) for n in range(40)]
    parts = np.random.default_rng(1).integers(0, 2, sum(map(len, vectors))).astype(np.int32)
    return ArrayDocuments(vectors, parts=parts)


def settings(**changes: Any) -> PretrainSettings:
    raw: dict[str, Any] = {
        "steps": 50, "eval_every": 50, "save_every": 12, "threads": 1, "precision": "float32", "ema_decay": 0.9,
        "optimizer": {"lr": 3e-3, "warmup_steps": 3},
        "model": {"context": 8, "hidden": 24, "layers": 1, "heads": 2, "dropout": 0.0},
        "objectives": {"mse": 0.5, "in_document": 0.3, "denoise": 0.2, "denoise_rows": 0.5, "later_pieces": False,
                       "ahead": 0.2, "ahead_sentences": 5},
        "data": {"batch_sentences": 64, "held_out_fraction": 0.2, "context_dropout": 0.1, "noise": 0.1},
    }  # fmt: skip
    return settings_from(PretrainSettings, raw | changes, origin="test")


def train(out: Path, config: PretrainSettings, *, stop_at: int | None = None, nan_at: int | None = None) -> str:
    with joined(torch.device("cpu")) as ranks:
        task = Tampered(documents(), config, dim=DIM, ranks=ranks)
        task.stop_at, task.nan_at = stop_at, nan_at
        before = {name: value.clone() for name, value in task.module.state_dict().items()} if nan_at == 0 else {}
        try:
            Trainer(task, config, out, quiet=True).train()
        except KeyboardInterrupt:
            return "interrupted"
        except UserError as error:
            unchanged = all(torch.equal(before[name], value) for name, value in task.module.state_dict().items()) if before else None
            return f"{error} unchanged={unchanged}"
    return "done"


def in_processes(size: int, *arguments: Any, **options: Any) -> list[str]:
    """`train` in processes of its own; what each returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(size)]

    def one(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        pipes[rank][1].send(train(*arguments, **options))

    workers = [context.Process(target=one, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert all(worker.exitcode == 0 for worker in workers), [worker.exitcode for worker in workers]
    return [receiver.recv() for receiver, _ in pipes]


def main(folder: Path) -> None:
    plain, sharded = settings(), settings(sharding="fsdp", checkpoint_activations=True)
    few = {"steps": 3, "accumulate": 2}
    results = {
        "one": in_processes(1, folder / "one", plain),
        "ddp": in_processes(2, folder / "ddp", plain),
        "fsdp": in_processes(2, folder / "fsdp", sharded),
        "one, accumulated": in_processes(1, folder / "one, accumulated", settings(**few)),
        "ddp, accumulated": in_processes(2, folder / "ddp, accumulated", settings(**few)),
        "fsdp, accumulated": in_processes(2, folder / "fsdp, accumulated", settings(**few, sharding="fsdp")),
        "nan": in_processes(2, folder / "nan", plain, nan_at=0),
    }
    for size, config, step in ((2, sharded, 12), (1, plain, 24), (2, plain, 36), (2, sharded, None)):
        results[f"moved on to {step}"] = in_processes(size, folder / "moved", config, stop_at=step)
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
