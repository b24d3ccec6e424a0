"""The one training loop: load, step, validate, save; everything trained in lsm goes through it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lsm.errors import UserError
from lsm.files import DONE_MARKER, atomic_folder, explained, remove_leftovers, unseen_folder
from lsm.lock import only_writer
from lsm.progress import Progress, duration, say
from lsm.provenance import fast_dtype
from lsm.training.checkpoint import FINAL, Resume, Tensors, latest_checkpoint, load_checkpoint, mark_done, open_run, save_checkpoint
from lsm.training.metrics import MetricsLog, NoMetrics, plot_loss, read_metrics
from lsm.training.optimizer import (
    AveragedWeights,
    empty_optimizer_state,
    learning_rate,
    load_optimizer_state,
    load_trained_state,
    make_optimizer,
    optimizer_state,
    trained_parameters,
    trained_state,
)
from lsm.training.parallel import Parallel, clip_gradients, prepare_layers
from lsm.training.settings import TrainingSettings
from lsm.training.task import Task
from lsm.training.throughput import Throughput

PREPARED = "prepared"
_ETA_AFTER_STEPS = 5
_PLOT_EVERY_SECONDS = 60.0


class Trainer:
    """Trains `task` into the run folder `out`; on the CPU a killed and resumed run ends with the bytes of an unbroken one.

    Every random number is drawn from (seed, batch index), so a checkpoint is weights, averages, moments and the step.

    Raises:
        UserError: `out` belongs to another run, `resume` forbids what is found, or the loss stops being finite.
    """

    def __init__(
        self, task: Task, settings: TrainingSettings, out: Path, *, seed: int = 0, resume: Resume = "auto", quiet: bool = False
    ) -> None:
        self.task, self.settings, self.out, self.seed, self.ranks = task, settings, out, seed, task.ranks
        self.quiet = quiet or not self.ranks.is_first
        torch.set_num_threads(settings.threads)
        self.device = next(iter(trained_parameters(task.module).values())).device
        self.dtype, self.dtype_reason = self._choose_dtype()
        prepare_layers(task, settings, self.device)
        self.ranks.on_first(lambda: open_run(out, settings, task.fingerprint(), seed=seed, resume=resume))

    def train(self) -> dict[str, Any]:
        """Train to the last step; returns `steps`, `steps_now`, `elapsed_seconds`, `parameters` and the last `evaluation`."""
        with self._as_only_writer(), explained(self.out):
            start = self._load()
            if (self.out / FINAL / DONE_MARKER).exists():
                say(f"{self.out} is finished: nothing to do", quiet=self.quiet)
                return self._result(self.settings.steps, 0.0)
            self._print_plan(start)
            self.task.prepare(self.out / PREPARED, quiet=self.quiet)
            began = time.monotonic()
            self.log = MetricsLog(self.out, start) if self.ranks.is_first else NoMetrics()
            self.speed = Throughput(self.task.flops_per_step(), self.ranks, self.device, self.dtype)
            with Progress(self.task.name, self.settings.steps - start, "steps", quiet=self.quiet) as progress:
                if start == 0:
                    self._validate(0)
                elif start == self.settings.steps:
                    self._evaluate()  # stopped before its last folder was written: what the card says is measured again
                for step in range(start + 1, self.settings.steps + 1):
                    row = self._step(step)
                    self.log.write(step, row)
                    if step % self.settings.eval_every == 0 or step == self.settings.steps:
                        self._validate(step)
                    if step % self.settings.save_every == 0 or step == self.settings.steps:
                        self._save(step)
                    progress.advance(1, f"loss {row['loss']:.4f}")
                    self._print_eta(step - start, step)
            self.log.close()
            self._save_final()
            self._record_session(start, time.monotonic() - began)
        return self._result(start, time.monotonic() - began)

    @contextmanager
    def _as_only_writer(self) -> Iterator[None]:
        """The first process holds the folder and clears it of what an interrupted writer left."""
        with ExitStack() as held:
            self.ranks.on_first(lambda: held.enter_context(only_writer(self.out)))
            self.ranks.on_first(lambda: remove_leftovers(self.out))
            yield
            self.ranks.barrier()

    def _load(self) -> int:
        """Lay out the module, build optimizer and averages, put back the newest checkpoint; returns its step (0 = there is none)."""
        module = self.task.module
        self.parallel = Parallel(module, self.task.layers(), self.ranks, self.settings.sharding)
        self.optimizer = make_optimizer(module, self.settings.optimizer)
        self.averages = AveragedWeights(module, self.settings.ema_decay) if self.settings.ema_decay is not None else None
        self._last_plot = time.monotonic()
        checkpoint = latest_checkpoint(self.out)
        if checkpoint is None:
            return 0
        step, tensors = load_checkpoint(checkpoint, self._places)
        load_trained_state(module, tensors["model"])
        load_optimizer_state(self.optimizer, module, tensors["optimizer"])
        if self.averages:
            self.averages.load(tensors["ema"])
        return step

    def _step(self, step: int) -> dict[str, float]:
        """One optimizer step (1-based); returns what is logged. Nothing is changed when the loss is not finite."""
        settings = self.settings
        self.speed.start()
        self.task.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        logged: dict[str, float] = {}
        for part in range(settings.accumulate):
            index = (step - 1) * settings.accumulate + part
            torch.manual_seed(step_seed(self.seed, index) + self.ranks.rank)  # dropout differs between processes
            batch = self.task.batch(index)
            with self._autocast():
                loss, scalars = self.parallel.train(partial(self.task.loss, batch), last=part == settings.accumulate - 1)
            (loss / settings.accumulate).backward()
            values = self.ranks.mean({name: float(value) for name, value in ({"loss": loss.detach()} | scalars).items()})
            for name, value in values.items():
                logged[name] = logged.get(name, 0.0) + value / settings.accumulate
            self.speed.add(self.task.units(batch))
            if not math.isfinite(logged["loss"]):
                self._stop(step, "loss", batch, logged)
        self.parallel.finish_gradients()
        clip_norm = settings.optimizer.clip_norm
        norm = clip_gradients(list(trained_parameters(self.task.module).values()), math.inf if clip_norm is None else clip_norm)
        if not math.isfinite(norm):
            self._stop(step, "gradient", batch, logged)
        rate = learning_rate(step, settings.steps, settings.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.averages:
            self.averages.update(step)
        self.speed.stop()
        return logged | {"lr": rate, "grad_norm": norm}

    def _evaluate(self) -> dict[str, float]:
        self.task.module.eval()
        torch.manual_seed(step_seed(self.seed, -1))
        with torch.no_grad(), self._averaged(), self._autocast():
            # Every process evaluates everything: waiting for one would take as long, and sharded weights need all.
            return {name: float(value) for name, value in self.parallel.evaluate(self.task.evaluate).items()}

    def _validate(self, step: int) -> None:
        evaluation = self._evaluate()
        self.log.write(step, {"evaluation": evaluation})
        listed = ", ".join(f"{name} {value:.4g}" for name, value in evaluation.items())
        say(f"step {step:,} held out: {listed}", quiet=self.quiet)
        if step:
            self.log.write_speed(step, self.speed.report())

    def _save(self, step: int) -> None:
        self.log.flush()
        save_checkpoint(self.out, step, self._tensors(), keep=self.settings.keep_checkpoints, ranks=self.ranks)
        if self.ranks.is_first and (step == self.settings.steps or time.monotonic() - self._last_plot > _PLOT_EVERY_SECONDS):
            plot_loss(self.out, self.task.name)
            self._last_plot = time.monotonic()

    def _tensors(self) -> Tensors:
        tensors = {"model": trained_state(self.task.module), "optimizer": optimizer_state(self.optimizer, self.task.module)}
        return tensors | ({"ema": self.averages.state()} if self.averages else {})

    def _places(self) -> Tensors:
        empty_optimizer_state(self.optimizer)
        return self._tensors()

    def _save_final(self) -> None:
        self.task.module.eval()
        torch.manual_seed(step_seed(self.seed, -1))
        with torch.no_grad(), self._averaged(), self._autocast(), self._final_folder() as folder:
            self.parallel.evaluate(partial(self.task.save_final, folder))
            mark_done(folder)

    def _final_folder(self) -> AbstractContextManager[Path]:
        """`final/`; of the other processes, which help to gather and evaluate, a folder that nobody sees."""
        return atomic_folder(self.out / FINAL) if self.ranks.is_first else unseen_folder()

    def _stop(self, step: int, what: str, batch: Any, logged: dict[str, float]) -> None:
        self.log.close()
        parts = ", ".join(f"{name} {value:.4g}" for name, value in logged.items())
        raise UserError(
            f"{what} is not finite at step {step} ({parts}); nothing was updated; batch: {self.task.describe_batch(batch)}; "
            f"check these documents with `lsm inspect --verify`, or lower --optimizer.lr {self.settings.optimizer.lr:g}"
        )

    def _averaged(self) -> Any:
        return self.averages.applied() if self.averages else nullcontext()

    def _autocast(self) -> Any:
        if self.dtype == torch.float32:
            return nullcontext()
        # Weight casts are cached per autocast block, which the swap of averaged weights ends anyway.
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _choose_dtype(self) -> tuple[torch.dtype, str]:
        if self.settings.precision == "auto":
            return fast_dtype(self.device)
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[self.settings.precision], f"{self.settings.precision}: asked for"

    def _print_plan(self, start: int) -> None:
        module, settings = self.task.module, self.settings
        parts: dict[str, int] = {}
        for name, parameter in trained_parameters(module).items():
            head = name.split(".")[0]
            parts[head] = parts.get(head, 0) + parameter.numel()
        total = sum(parts.values())
        shared = f", {self.ranks.size} processes ({settings.sharding})" if self.ranks.size > 1 else ""
        copies = 3 + (self.averages is not None)
        lines = [
            f"training {self.task.name} into {self.out}" + (f", resumed at step {start:,}" if start else ""),
            f"  parameters  {total:,} ({', '.join(f'{name} {count:,}' for name, count in parts.items())})",
            *(f"  {line}" for line in self.task.plan()),
            f"  steps       {settings.steps:,}, {settings.steps - start:,} to do; lr {settings.optimizer.lr:g}, seed {self.seed}",
            f"  device      {self.device}, {self.dtype_reason}, {settings.threads} threads{shared}",
            f"  disk        {copies * total * 4 * settings.keep_checkpoints / 2**20:,.0f} MiB of checkpoints",
        ]
        say("\n".join(lines), quiet=self.quiet)

    def _print_eta(self, done: int, step: int) -> None:
        if done == 1:
            self._after_first = time.monotonic()
        if done == 1 + _ETA_AFTER_STEPS and step < self.settings.steps:
            seconds = (time.monotonic() - self._after_first) / _ETA_AFTER_STEPS
            left = duration(seconds * (self.settings.steps - step))
            say(f"{seconds:.2f} s a step, about {left} left (evaluations and checkpoints not counted)", quiet=self.quiet)
            say(self.speed.line(), quiet=self.quiet)

    def _record_session(self, start: int, seconds: float) -> None:
        if not self.ranks.is_first:
            return
        row = {
            "from_step": start,
            "to_step": self.settings.steps,
            "seconds": round(seconds, 3),
            "device": str(self.device),
            "precision": str(self.dtype).removeprefix("torch."),
            "processes": self.ranks.size,
        }
        with open(self.out / "sessions.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row | self.speed.report()) + "\n")

    def _result(self, start: int, seconds: float) -> dict[str, Any]:
        evaluations = [row["evaluation"] for row in read_metrics(self.out) if "evaluation" in row]
        return {
            "run": str(self.out),
            "steps": self.settings.steps,
            "steps_now": self.settings.steps - start,
            "elapsed_seconds": round(seconds, 3),
            "parameters": sum(p.numel() for p in trained_parameters(self.task.module).values()),
            "evaluation": evaluations[-1] if evaluations else {},
        }


def step_seed(seed: int, index: int) -> int:
    """A 63-bit seed for batch `index`: SplitMix64 of both numbers, so that neighbours share nothing."""
    value = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1


def step_generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator for batch `index` of a task's own draws."""
    return torch.Generator().manual_seed(step_seed(seed, index))
