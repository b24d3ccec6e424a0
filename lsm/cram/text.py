"""One text on its way into memory vectors: its search, its optimiser, what was reached, and all of it as tensors and JSON.

Shape letters: P vectors, H hidden width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from lsm.cram.growth import Growth
from lsm.cram.settings import CramSettings, StageSettings
from lsm.lm.generation import row_seed

TRAJECTORY_EVERY = 10
"""Steps between two points of the accuracy trajectory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A text to cram."""

    name: str
    kind: str
    """natural, random or question."""
    ids: list[int]
    """Its tokens, as many as are tried at most."""


@dataclasses.dataclass(kw_only=True)
class Stage:
    """What became of one target."""

    target: int
    reached: bool
    steps: int
    accuracy: float
    """Best share of right tokens after right tokens."""
    greedy_tokens: int
    """Tokens given back free-running before the first error, by the last vectors of that best share."""
    divergence: float
    """Their KL on a kept sentence, nats a token."""


class Text:
    """One text's state; nothing in it depends on the texts beside it."""

    def __init__(self, target: Target, n_vectors: int, width: int, settings: CramSettings, *, seed: int, device: torch.device) -> None:
        self.target, self._settings, self._seed = target, settings, seed
        self.growth = Growth(len(target.ids))
        self.vectors_PH = nn.Parameter(torch.empty(n_vectors, width, device=device))
        self._draw()
        self.held_PH, self.best_PH = (self.vectors_PH.detach().clone() for _ in range(2))
        self.steps = self.stage_steps = self.best_right = 0
        self.best_divergence = 0.0
        self.stages: list[Stage] = []
        self.trajectory: list[tuple[int, int, float]] = []
        self._optimizer = self._new_optimizer()

    def __str__(self) -> str:
        trying = "" if self.tokens is None else f" ({self.best_right}/{self.tokens})"
        return f"{self.growth.held}{trying}"

    @property
    def tokens(self) -> int | None:
        """Tokens of the target at hand; None when the search is over."""
        return self.growth.target(self._settings.growth)

    def see(self, n_right: int, divergence: float) -> None:
        """Note how many tokens of the target are right with the vectors at hand, and their KL on a kept sentence."""
        assert self.tokens is not None
        if self.steps % TRAJECTORY_EVERY == 0 or n_right == self.tokens:
            self.trajectory.append((self.steps, self.tokens, n_right / self.tokens))
        if n_right >= self.best_right or self.stage_steps == 0:
            self.best_right, self.best_divergence = n_right, divergence
            self.best_PH = self.vectors_PH.detach().clone()

    def step(self) -> None:
        """One step down the gradient that the vectors have."""
        self._optimizer.param_groups[0]["lr"] = rate(self.stage_steps, self._settings.stage)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps, self.stage_steps = self.steps + 1, self.stage_steps + 1

    @property
    def out_of_steps(self) -> bool:
        return self.stage_steps >= self._settings.stage.steps

    def end_stage(self, greedy_tokens: int) -> None:
        """On to the next target, from the vectors at hand, or from new ones where the first target is tried again.

        Args:
            greedy_tokens: of the target, given back by the stage's best vectors before the first error.
        """
        tokens = self.tokens
        assert tokens is not None
        written = greedy_tokens if self.best_divergence <= self._settings.kl_most else 0
        stage = Stage(target=tokens, reached=written == tokens, steps=self.stage_steps, accuracy=self.best_right / tokens,
                      greedy_tokens=greedy_tokens, divergence=self.best_divergence)  # fmt: skip
        self.stages.append(stage)
        held, restarts = self.growth.held, self.growth.restarts
        self.growth.record(tokens, written, self._settings.growth)
        if self.growth.held > held:
            self.held_PH = self.best_PH.clone()
        if self.growth.restarts > restarts:
            self._draw()
        self.stage_steps = self.best_right = 0
        self._optimizer = self._new_optimizer()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that goes on, as tensors and as JSON."""
        moments = self._optimizer.state.get(self.vectors_PH, {})
        tensors = {"vectors": self.vectors_PH.detach(), "held": self.held_PH, "best": self.best_PH} | moments
        numbers = {name: getattr(self, name) for name in ("steps", "stage_steps", "best_right", "best_divergence", "trajectory")}
        growth = {name: getattr(self.growth, name) for name in ("held", "failed", "restarts")}
        return tensors, numbers | {"growth": growth, "stages": [dataclasses.asdict(stage) for stage in self.stages]}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        device = self.vectors_PH.device
        with torch.no_grad():
            self.vectors_PH.copy_(tensors["vectors"])
        self.held_PH, self.best_PH = tensors["held"].to(device), tensors["best"].to(device)
        moments = {name: value if name == "step" else value.to(device) for name, value in tensors.items()}
        self._optimizer.state[self.vectors_PH] = {name: moments[name] for name in moments.keys() - {"vectors", "held", "best"}}
        for name in ("steps", "stage_steps", "best_right", "best_divergence"):
            setattr(self, name, numbers[name])
        self.trajectory = [tuple(point) for point in numbers["trajectory"]]
        self.growth = Growth(len(self.target.ids), **numbers["growth"])
        self.stages = [Stage(**stage) for stage in numbers["stages"]]

    @torch.no_grad()
    def _draw(self) -> None:
        """Vectors to start from, others after each restart."""
        which = (self.target.name, self.target.kind, str(len(self.vectors_PH)), *([str(self.growth.restarts)] * (self.growth.restarts > 0)))
        generator = torch.Generator().manual_seed(row_seed(self._seed, *(part.encode() for part in which)))
        self.vectors_PH.copy_(torch.randn(self.vectors_PH.shape, generator=generator) * self._settings.stage.init_std)

    def _new_optimizer(self) -> torch.optim.AdamW:
        stage = self._settings.stage
        return torch.optim.AdamW([self.vectors_PH], lr=stage.lr, betas=(stage.beta1, stage.beta2), weight_decay=stage.weight_decay)


def rate(step: int, stage: StageSettings) -> float:
    """Learning rate of a stage's step, counted from 0: half a cosine from `lr` to `lr_end`."""
    return stage.lr_end + (stage.lr - stage.lr_end) * 0.5 * (1 + math.cos(math.pi * step / max(1, stage.steps - 1)))
