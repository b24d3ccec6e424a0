"""The processes of one training, started by torchrun: which one this is, what they tell each other, and how they meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lsm import processes
from lsm.errors import UserError

_PATIENCE = timedelta(hours=2)  # the first process writes checkpoints while the others wait


@dataclass(frozen=True)
class Ranks:
    """This process among those of the training. The default is a process of its own, for which nothing here does anything."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and speaks."""
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """This process's rows of a batch: every `size`-th, so that each gets its share of what only the first rows do."""
        return slice(self.rank, None, self.size)

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the processes, which must all bring the same names."""
        if self.size == 1:
            return values
        # Not ReduceOp.AVG, which gloo lacks.
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def on_first(self, work: Callable[[], Any]) -> None:
        """Run `work` on the first process while the others wait; a `UserError` there is raised on all of them."""
        error: UserError | None = None
        if self.is_first:
            try:
                work()
            except UserError as caught:
                error = caught
        if self.size > 1:
            message = [None if error is None else str(error)]
            dist.broadcast_object_list(message, src=0, device=self.device)
            if message[0] is not None and error is None:
                error = UserError(message[0])
        if error is not None:
            raise error


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes: NCCL with one GPU each, gloo on the CPU. Without torchrun: `ALONE` on `device`.

    Raises:
        UserError: a device that several processes cannot share.
    """
    size = processes.count()
    if size == 1:
        yield Ranks(device=device)
        return
    if device.type not in ("cpu", "cuda") or device.index is not None:
        raise UserError(f"--device {device}: {size} processes need --device cpu or cuda (each then takes a GPU of its own)")
    if device.type == "cuda":
        local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= there:
            raise UserError(f"torchrun --nproc-per-node: more processes than this machine's {there} GPUs; start {there} or --device cpu")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE, device_id=device if on_gpu else None)
    try:
        yield Ranks(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
