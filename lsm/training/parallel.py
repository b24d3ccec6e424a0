"""Where the weights of a training lie: whole in one process, replicated (DDP) or sharded (FSDP2) over several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from lsm import processes
from lsm.errors import UserError
from lsm.training.distributed import Ranks
from lsm.training.settings import Sharding, TrainingSettings

if TYPE_CHECKING:
    from lsm.training.task import Task

T = TypeVar("T")


def prepare_layers(task: Task, settings: TrainingSettings, device: torch.device) -> None:
    """Have the task's layers compiled and their activations computed again, where the settings ask for it.

    Raises:
        UserError: what is asked for cannot be had.
    """
    if processes.count() > 1 and task.ranks.size == 1:
        raise UserError(f"training of a {task.name} runs in one process; start it without torchrun")
    layers = task.layers()
    for name in ("compile", "checkpoint_activations"):
        if getattr(settings, name) and not layers:
            raise UserError(f"--{name.replace('_', '-')}: a {task.name} has no layers to apply it to; leave it out")
    if settings.compile and device.type != "cuda":
        raise UserError(f"--compile pays on CUDA only, and this is {device}; leave it out")
    for layer in layers:
        # The forward alone: the hooks of FSDP stay outside.
        if settings.compile:
            layer.forward = torch.compile(layer.forward)
        if settings.checkpoint_activations:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


class Parallel:
    """Runs work on a module that is whole (one process), replicated (DDP) or sharded (FSDP2); its parameters keep their names.

    The work is wrapped, not the module: what a task does with parts of its module outside `forward` (a second pass, a temperature)
    is then averaged and gathered like everything else. Gradients are means over the processes, so each one's loss must be scaled
    such that their mean is the loss of the whole batch.

    Args:
        layers: modules that FSDP gathers one at a time.
    """

    def __init__(self, module: nn.Module, layers: Sequence[nn.Module], ranks: Ranks, sharding: Sharding) -> None:
        self._ranks = ranks
        self._ddp: nn.parallel.DistributedDataParallel | None = None
        self._root: nn.Module | None = None
        self._apart: list[nn.Parameter] = []
        if ranks.size == 1:
            return
        assert ranks.device is not None
        if sharding == "ddp":
            # Parameters that no objective reaches are allowed, as in one process.
            self._root = self._ddp = nn.parallel.DistributedDataParallel(_Work(module), find_unused_parameters=True)
            return
        from torch.distributed.fsdp import fully_shard

        mesh = dist.init_device_mesh(ranks.device.type, (ranks.size,))
        scalars = {parameter for parameter in module.parameters() if parameter.ndim == 0}  # which cannot be sharded
        self._apart = [parameter for parameter in module.parameters() if parameter.ndim == 0 and parameter.requires_grad]
        # Resharded after every forward: after an evaluation the gathered weights would be the averaged ones.
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        self._root = _Work(module)
        fully_shard(self._root, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)

    def train(self, work: Callable[[], T], *, last: bool) -> T:
        """`work` whose result is differentiated; gradients of other than the `last` batch of a step may stay local."""
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = last
        return work() if self._root is None else self._root(work)

    def evaluate(self, work: Callable[[], T]) -> T:
        """`work` without gradients, in which sharded weights are gathered; every process must call it."""
        return work() if self._root is None or self._ddp is not None else self._root(work)

    def finish_gradients(self) -> None:
        """After the last backward pass of a step: average what FSDP does not take."""
        for parameter in self._apart:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self._ranks.size


class _Work(nn.Module):
    """A module whose forward is whatever it is handed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[], T]) -> T:
        return work()


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor's parts lie in several processes."""
    return isinstance(tensor, DTensor)


def kept(tensor: Tensor) -> Tensor:
    """A copy on the CPU; of a sharded tensor itself, which each process saves its part of."""
    return tensor.detach() if isinstance(tensor, DTensor) else tensor.detach().cpu().clone().contiguous()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process, sharing its memory; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its parts; every process must ask for it when it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(target: Tensor, value: Tensor) -> Tensor:
    """`value` laid out over the processes as `target` is, of which each already holds all."""
    if isinstance(target, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return value


def clip_gradients(parameters: Sequence[nn.Parameter], largest_norm: float) -> float:
    """Scale all gradients so that their common norm is at most `largest_norm`; returns the norm before."""
    # Sharded and whole tensors do not go through one kernel together.
    groups = [[p for p in parameters if p.grad is not None and is_sharded(p.grad) == sharded] for sharded in (False, True)]
    groups = [group for group in groups if group]
    norms = [whole(torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])) for group in groups]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for group in groups:
        torch.nn.utils.clip_grads_with_norm_(group, largest_norm, norm)
    return float(norm)
