"""Promises of the training loop: loss falls, resumed = unbroken bitwise, wrong resumes are refused, nothing is updated by a bad loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lsm.errors import UserError
from lsm.files import sha256_file
from lsm.lock import only_writer
from lsm.training.loop import Trainer, step_generator, step_seed
from lsm.training.metrics import read_metrics
from lsm.training.settings import OptimizerSettings, TrainingSettings
from lsm.training.task import Task


class Interrupted(Exception):
    pass


class Regression(Task):
    """A two-layer network with dropout, a frozen part and a buffer, fitting a fixed linear map."""

    name = "regression"

    def __init__(self, *, stop_at: int | None = None, nan_at: int | None = None, corpus: str = "a", rows: int = 16) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, 2), nn.BatchNorm1d(2))
        self.module.append(nn.Linear(2, 2).requires_grad_(False))
        self.stop_at, self.nan_at, self.corpus, self.rows = stop_at, nan_at, corpus, rows
        self.truth = torch.randn(6, 2, generator=torch.Generator().manual_seed(5))

    def batch(self, index: int) -> Any:
        if index == self.stop_at:
            raise Interrupted
        x = torch.randn(self.rows, 6, generator=step_generator(1, index))
        if index == self.nan_at:
            x[0] = torch.nan
        return x, x @ self.truth

    def loss(self, batch: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        loss = (self.module(batch[0]) - batch[1]).square().mean()
        return loss, {"half": loss.detach() / 2}

    def evaluate(self) -> dict[str, float]:
        assert not self.module.training and not torch.is_grad_enabled()
        x = torch.randn(64, 6, generator=step_generator(2, 0))
        return {"loss": float((self.module(x) - x @ self.truth).square().mean())}

    def save_final(self, folder: Path) -> None:
        save_file({name: value.clone() for name, value in self.module.state_dict().items()}, folder / "model.safetensors")

    def fingerprint(self) -> dict[str, Any]:
        return {"corpus": self.corpus}

    def describe_batch(self, batch: Any) -> str:
        return "documents 7, 8"


def settings(**changes: Any) -> TrainingSettings:
    optimizer = OptimizerSettings(lr=1e-2, warmup_steps=2)
    basis = {"steps": 24, "eval_every": 8, "save_every": 5, "threads": 1, "precision": "float32", "ema_decay": 0.9, "optimizer": optimizer}
    return TrainingSettings(**(basis | changes))


def train(task: Task, out: Path, config: TrainingSettings | None = None, **options: Any) -> dict[str, Any]:
    return Trainer(task, config or settings(), out, quiet=True, **options).train()


def sums(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def test_loss_falls_and_the_folder_is_complete(tmp_path: Path) -> None:
    results = train(Regression(), tmp_path / "run", settings(steps=100, save_every=25))
    rows = read_metrics(tmp_path / "run")
    assert rows[0]["step"] == 0 and "evaluation" in rows[0]
    assert results["evaluation"]["loss"] < 0.5 * rows[0]["evaluation"]["loss"]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 101))
    there = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "sessions.jsonl",
        "loss.png",
        "tensorboard",
        "final",
        "step-00000075",
        "step-00000100",
    }
    assert there == expected
    assert not any(name.startswith("5.") for name in load_file(tmp_path / "run/step-00000100/model.safetensors")), "frozen weights saved"


@pytest.mark.parametrize("stop_at", [3, 10, 23])
def test_resumed_equals_unbroken_bitwise(tmp_path: Path, stop_at: int) -> None:
    train(Regression(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(Regression(stop_at=stop_at), tmp_path / "broken")
    train(Regression(), tmp_path / "broken")
    for name in ("final", "step-00000024"):
        assert sums(tmp_path / "whole" / name) == sums(tmp_path / "broken" / name)
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "broken/metrics.jsonl").read_bytes()


def test_interrupted_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lsm.training.checkpoint as checkpoint

    def dies(folder: Path) -> None:
        raise Interrupted

    train(Regression(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "mark_done", dies)
        with pytest.raises(Interrupted):
            train(Regression(), tmp_path / "broken")
    train(Regression(), tmp_path / "broken")
    assert sums(tmp_path / "whole/final") == sums(tmp_path / "broken/final")


def test_stopped_between_the_last_checkpoint_and_the_final_folder(tmp_path: Path) -> None:
    class Carded(Regression):
        dies, scores = False, {}

        def evaluate(self) -> dict[str, float]:
            self.scores = super().evaluate()
            return self.scores

        def save_final(self, folder: Path) -> None:
            if self.dies:
                raise Interrupted
            super().save_final(folder)
            (folder / "README.md").write_text(f"held out: {self.scores['loss']}")

    train(Carded(), tmp_path / "whole")
    broken = Carded()
    broken.dies = True
    with pytest.raises(Interrupted):
        train(broken, tmp_path / "broken")
    train(Carded(), tmp_path / "broken")
    assert sums(tmp_path / "whole/final") == sums(tmp_path / "broken/final")
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "broken/metrics.jsonl").read_bytes()


def test_finished_run_is_left_alone(tmp_path: Path) -> None:
    first = train(Regression(), tmp_path / "run")
    before = sums(tmp_path / "run")
    again = train(Regression(stop_at=0), tmp_path / "run")
    assert sums(tmp_path / "run") == before
    assert again["steps_now"] == 0 and again["evaluation"] == first["evaluation"]


def test_resume_never_and_must(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        train(Regression(), tmp_path / "run", resume="must")
    train(Regression(), tmp_path / "run", resume="never")
    with pytest.raises(UserError, match="already holds a run"):
        train(Regression(), tmp_path / "run", resume="never")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not a run"):
        train(Regression(), tmp_path / "other")


def test_other_settings_or_corpus_are_refused_with_both_fingerprints(tmp_path: Path) -> None:
    train(Regression(), tmp_path / "run")
    with pytest.raises(UserError, match=r"fingerprint \w{16}, now \w{16}.*steps 24 → 30"):
        train(Regression(), tmp_path / "run", settings(steps=30))
    with pytest.raises(UserError, match=r"inputs\.corpus a → b"):
        train(Regression(corpus="b"), tmp_path / "run")
    with pytest.raises(UserError, match="seed 0 → 1"):
        train(Regression(), tmp_path / "run", seed=1)
    train(Regression(), tmp_path / "run", settings(save_every=7))  # changes nothing of the result


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_bad_loss_stops_before_the_update(tmp_path: Path, clip_norm: float | None) -> None:
    task = Regression(nan_at=7)
    config = settings(optimizer=OptimizerSettings(lr=1e-2, warmup_steps=2, clip_norm=clip_norm))
    with pytest.raises(UserError, match=r"not finite at step 8 .*documents 7, 8"):
        train(task, tmp_path / "run", config)
    assert all(torch.isfinite(p).all() for p in task.module.parameters())
    assert read_metrics(tmp_path / "run")[-1]["step"] == 7


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(Regression(stop_at=12), tmp_path / "run")
    file = tmp_path / "run/step-00000010/optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"step-00000010/optimizer\.safetensors is damaged"):
        train(Regression(), tmp_path / "run")


def test_accumulation_equals_one_larger_batch(tmp_path: Path) -> None:
    class Halves(Regression):
        def __init__(self, parts: int) -> None:
            super().__init__()
            self.parts = parts
            self.module = nn.Sequential(nn.Linear(6, 2))
            with torch.no_grad():
                self.module[0].weight.fill_(0.1)
                self.module[0].bias.zero_()

        def batch(self, index: int) -> Any:
            step, part = divmod(index, self.parts)
            x = torch.randn(16, 6, generator=step_generator(1, step)).chunk(self.parts)[part]
            return x, x @ self.truth

    for parts in (1, 2):
        train(Halves(parts), tmp_path / str(parts), settings(accumulate=parts, ema_decay=None))
    one, two = (load_file(tmp_path / str(parts) / "final/model.safetensors") for parts in (1, 2))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_two_trainings_into_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    trainer = Trainer(Regression(), settings(), tmp_path / "run", quiet=True)
    with only_writer(tmp_path / "run"), pytest.raises(UserError, match="another process"):
        trainer.train()


def test_step_seeds_differ() -> None:
    seen = {step_seed(seed, index) for seed in range(20) for index in range(-3, 200)}
    assert len(seen) == 20 * 203
    assert step_seed(3, 5) == step_seed(3, 5)
