"""AdamW, its schedule, averaged weights, and their state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lsm.training.parallel import is_sharded, kept, local, sharded_like
from lsm.training.settings import OptimizerSettings


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get gradients, by name; a tied one is listed once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained parameters and the buffers on the CPU: what a checkpoint holds of a module. Sharded ones stay as they are."""
    frozen = {name for name, parameter in module.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return {name: kept(value) for name, value in module.state_dict().items() if name not in frozen}


def load_trained_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `trained_state` gave."""
    there = module.state_dict()
    state = {name: sharded_like(there[name], value) if name in there else value for name, value in state.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    frozen = {name for name, parameter in module.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    assert not unexpected and set(missing) <= frozen, f"checkpoint and module differ: missing {missing}, unexpected {unexpected}"


def make_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW in two groups: matrices are decayed, vectors and scalars (norms, biases, temperatures) are not."""
    parameters = list(trained_parameters(module).values())
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        # Sharded and whole tensors do not go through one kernel together.
        *({"params": [p for p in vectors if is_sharded(p) == sharded], "weight_decay": 0.0} for sharded in (True, False)),
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=fused)


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Learning rate of step `step` (1-based) of `steps`: linear warm-up, then half a cosine down to `min_lr_ratio`."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return settings.lr * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * cosine)


def optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Optimizer state as flat tensors `<parameter name>|<moment>`."""
    return {
        f"{name}|{key}": kept(value)
        for name, parameter in trained_parameters(module).items()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave."""
    parameters = trained_parameters(module)
    for flat_name, value in state.items():
        name, key = flat_name.rsplit("|", 1)
        # AdamW's step counter lives on the parameter's device only in the fused form on a GPU; there it follows the parameter too.
        value = sharded_like(parameters[name], value) if value.shape == parameters[name].shape else value
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)


def empty_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Moments of zero for AdamW, in the places that a sharded checkpoint is read into."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            step = torch.zeros((), device=parameter.device)
            optimizer.state[parameter] = {"step": step} | {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}


class AveragedWeights:
    """Exponential moving average of the trained parameters.

    The decay grows as (1 + t) / (10 + t) up to `decay`, so that short runs are not dominated by their first weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._module = module
        self._averages = {name: parameter.detach().clone() for name, parameter in trained_parameters(module).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step` (1-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, now = self._averages.values(), trained_parameters(self._module).values()
        torch._foreach_lerp_([local(value) for value in averages], [local(value) for value in now], 1 - decay)

    @contextmanager
    def applied(self) -> Generator[None, None, None]:
        """Within the block the module holds the averages."""
        # Contents are swapped, not tensors: FSDP gathers from memory of its own.
        held = [(local(parameter.data), local(self._averages[name])) for name, parameter in trained_parameters(self._module).items()]
        plain = [here.clone() for here, _ in held]
        try:
            for here, average in held:
                here.copy_(average)
            yield
        finally:
            for (here, _), before in zip(held, plain, strict=True):
                here.copy_(before)

    def state(self) -> dict[str, Tensor]:
        """Copies of the averages, by parameter name."""
        return {name: kept(value) for name, value in self._averages.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name, value in self._averages.items():
            value.copy_(sharded_like(value, state[name]))
