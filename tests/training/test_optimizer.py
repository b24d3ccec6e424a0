"""Promises of the optimizer's parts: known schedule values, decay on matrices only, averages by the formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lsm.errors import UserError
from lsm.training.optimizer import AveragedWeights, learning_rate, load_optimizer_state, make_optimizer, optimizer_state
from lsm.training.settings import OptimizerSettings, TrainingSettings


def test_schedule_known_values() -> None:
    settings = OptimizerSettings(lr=1.0, warmup_steps=10, min_lr_ratio=0.1)
    assert learning_rate(5, 110, settings) == pytest.approx(0.5)
    assert learning_rate(10, 110, settings) == pytest.approx(1.0)
    assert learning_rate(60, 110, settings) == pytest.approx(0.55)
    assert learning_rate(110, 110, settings) == pytest.approx(0.1)
    assert learning_rate(1, 1, OptimizerSettings(lr=1.0, warmup_steps=0)) == pytest.approx(0.1)


def test_decay_on_matrices_only() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.RMSNorm(3))
    groups = make_optimizer(module, OptimizerSettings(weight_decay=0.3)).param_groups
    decayed = [parameter for group in groups if group["weight_decay"] for parameter in group["params"]]
    assert len(decayed) == 1 and decayed[0] is module[0].weight


def test_optimizer_state_round_trip() -> None:
    module = nn.Linear(3, 2)
    optimizer = make_optimizer(module, OptimizerSettings())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer_state(optimizer, module)
    again = make_optimizer(module, OptimizerSettings())
    load_optimizer_state(again, module, state)
    assert set(state) == {f"{name}|{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")}
    for name, value in optimizer_state(again, module).items():
        assert torch.equal(value, state[name])


def test_averages_follow_the_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    averages = AveragedWeights(module, 0.5)
    expected = 0.0
    for step in range(1, 20):
        with torch.no_grad():
            module.weight.fill_(float(step))
        averages.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with averages.applied():
        assert float(module.weight.detach()) == pytest.approx(expected)
    assert float(module.weight.detach()) == 19.0


def test_all_problems_are_listed() -> None:
    with pytest.raises(UserError, match=r"steps 0 .*threads 0 .*ema_decay 1"):
        TrainingSettings(steps=0, threads=0, ema_decay=1.0, optimizer=OptimizerSettings(warmup_steps=0))
    with pytest.raises(UserError, match=r"lr 0.0 .*clip_norm -1"):
        OptimizerSettings(lr=0.0, clip_norm=-1)
