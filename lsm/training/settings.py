"""Settings of the one training loop; a task's own settings inherit from `TrainingSettings` and add its parts beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lsm.config import STRICT
from lsm.errors import UserError

Sharding = Literal["ddp", "fsdp"]


@dataclass(kw_only=True)
class OptimizerSettings:
    """AdamW with linear warm-up and cosine decay."""

    __pydantic_config__ = STRICT

    lr: float = 1e-3
    """Highest learning rate, reached after the warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up from zero."""
    min_lr_ratio: float = 0.1
    """Share of `lr` that is left at the last step of the cosine."""
    weight_decay: float = 0.05
    """Decoupled weight decay on matrices; norms, biases and other vectors are never decayed."""
    beta1: float = 0.9
    """Decay of the gradient's first moment."""
    beta2: float = 0.98
    """Decay of the gradient's second moment."""
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; None = no clipping."""

    def __post_init__(self) -> None:
        problems = []
        if not self.lr > 0:
            problems.append(f"optimizer.lr {self.lr} must be above 0")
        if self.warmup_steps < 0:
            problems.append(f"optimizer.warmup_steps {self.warmup_steps} must not be negative")
        if not 0 <= self.min_lr_ratio <= 1:
            problems.append(f"optimizer.min_lr_ratio {self.min_lr_ratio} must lie in 0..1")
        if self.weight_decay < 0:
            problems.append(f"optimizer.weight_decay {self.weight_decay} must not be negative")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            problems.append(f"optimizer.beta1 {self.beta1} and optimizer.beta2 {self.beta2} must lie in [0, 1)")
        if self.clip_norm is not None and not self.clip_norm > 0:
            problems.append(f"optimizer.clip_norm {self.clip_norm} must be above 0 (or None for no clipping)")
        refuse(problems)


@dataclass(kw_only=True)
class TrainingSettings:
    """What every training has, whatever it trains. The seed is the verb's `--seed`."""

    __pydantic_config__ = STRICT

    steps: int = 1000
    """Optimizer steps."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one optimizer step."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of forward and backward pass; weights stay float32. auto = bfloat16 where the hardware multiplies it natively."""
    ema_decay: float | None = 0.999
    """Decay of the averaged weights that are evaluated and shipped (warmed up over the first steps); None = plain weights."""
    eval_every: int = 200
    """Steps between two evaluations on held-out data (there is always one before the first and one after the last step)."""
    save_every: int = 200
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    threads: int = 2
    """CPU threads; part of the settings because sums in another order differ in the last bit."""
    sharding: Sharding = "ddp"
    """What several processes (torchrun) hold: ddp = each all weights; fsdp = each a part of weights, moments and averages. A checkpoint
    of either is resumed with the other, and by any number of processes."""
    checkpoint_activations: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: a third more arithmetic, far less memory."""
    compile: bool = False
    """Compile the layers with torch.compile (on CUDA; elsewhere refused)."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """AdamW and its schedule."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} {value} must be at least 1"
            for name in ("steps", "accumulate", "eval_every", "save_every", "keep_checkpoints", "threads")
            if (value := getattr(self, name)) < 1
        ]
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            problems.append(f"ema_decay {self.ema_decay} must lie between 0 and 1 (or None for plain weights)")
        if self.optimizer.warmup_steps > self.steps:
            problems.append(f"optimizer.warmup_steps {self.optimizer.warmup_steps} is more than steps {self.steps}")
        refuse(problems)


def refuse(problems: list[str]) -> None:
    """Raise one `UserError` that lists every problem of a settings object; nothing happens when there is none."""
    if problems:
        raise UserError("settings: " + "; ".join(problems))
