"""Promises of the sampling heads: known scores, a distribution learned and drawn from, guidance, and the same draws from the same seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lsm.latent.heads import DenoisingHead, EnergyHead, VectorSampling, energy_score, guided, make_head
from lsm.latent.normaliser import Normaliser
from lsm.latent.rollout import rollout
from lsm.latent.settings import ModelSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer

KINDS = ("energy", "flow", "diffusion")


def head_of(kind: str, *, dim: int = 1, hidden: int = 1) -> EnergyHead | DenoisingHead:
    torch.manual_seed(0)
    head = make_head(kind, hidden=hidden, dim=dim, width=32, blocks=2)  # ty: ignore[invalid-argument-type]
    assert head is not None
    return head


def loss_of(head: EnergyHead | DenoisingHead, state: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if isinstance(head, EnergyHead):
        return head.loss(state, target, samples=8)
    return head.loss(state, target, hide=0.1)


def test_energy_score_known_values() -> None:
    x = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    assert float(energy_score(x, torch.tensor([[0.0, 0.0]]))) == pytest.approx(2.5 - 2.5)
    assert float(energy_score(x, torch.tensor([[6.0, 8.0]]))) == pytest.approx(7.5 - 2.5)
    many = torch.randn(3, 5, 4)
    direct = [
        (many[n] - 1).norm(dim=-1).mean() - sum((many[n, i] - many[n, j]).norm() for i in range(5) for j in range(5)) / (2 * 5 * 4)
        for n in range(3)
    ]
    torch.testing.assert_close(energy_score(many, torch.ones(3, 4)), torch.stack(direct))


@pytest.mark.parametrize("kind", KINDS)
def test_two_peaks_are_learned_not_their_mean(kind: str) -> None:
    """Given its sign, the truth is ±1 about 2·sign, each half of the time: a point prediction says 2·sign."""
    head = head_of(kind)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for step in range(300):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 300)
        state = torch.randint(0, 2, (256, 1), generator=generator) * 2.0 - 1
        target = 2 * state + torch.randint(0, 2, (256, 1), generator=generator) * 2.0 - 1
        optimizer.zero_grad()
        loss_of(head, state, target).backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        state = torch.ones(1000, 1)
        drawn = head.sample(state, VectorSampling(), torch.Generator().manual_seed(2))[:, 0]
        mean = head.mean(state)[:, 0]
    assert float(drawn.mean()) == pytest.approx(2, abs=0.25) and float(mean.mean()) == pytest.approx(2, abs=0.5)
    near = torch.stack([(drawn - 1).abs() < 0.4, (drawn - 3).abs() < 0.4]).float().mean(1)
    assert near.min() > 0.25, near  # both peaks are visited
    assert float(((drawn - 2).abs() < 0.4).float().mean()) < 0.15  # and hardly the mean between them
    assert float(mean.std()) < float(drawn.std()) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_draws_spread_with_temperature(kind: str) -> None:
    head, state = head_of(kind, dim=3, hidden=4), torch.randn(1, 4).expand(200, -1)
    with torch.no_grad():
        spreads = [
            float(head.sample(state, VectorSampling(temperature=t, steps=5), torch.Generator().manual_seed(0)).std(0).mean())
            for t in (0.0, 0.25, 0.5, 1.0)
        ]
    assert spreads[0] < 1e-5 and spreads == sorted(spreads) and spreads[1] < spreads[3]


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_zero_is_one_vector_and_seeds_decide(kind: str) -> None:
    head, state = head_of(kind, dim=3, hidden=4), torch.randn(6, 4)
    with torch.no_grad():
        cold = [head.sample(state, VectorSampling(temperature=0, steps=5), torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        warm = [head.sample(state, VectorSampling(steps=5), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    torch.testing.assert_close(cold[0], cold[1])
    torch.testing.assert_close(warm[0], warm[1])
    assert not torch.allclose(warm[0], warm[2])


def test_guidance_known_values() -> None:
    with_state, without = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(guided(with_state, without, 1.0, 0.7), with_state)
    torch.testing.assert_close(guided(with_state, without, 3.0, 0.0), torch.tensor([[3.0, 7.0]]))
    rescaled = guided(with_state, without, 3.0, 1.0)
    assert float(rescaled.std()) == pytest.approx(float(with_state.std()))
    head, state = head_of("flow", dim=3, hidden=4), torch.randn(6, 4)
    with torch.no_grad():
        plain, pushed = (head.sample(state, VectorSampling(steps=5, guidance=g), torch.Generator().manual_seed(0)) for g in (1.0, 3.0))
    assert not torch.allclose(plain, pushed)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_schedules_start_at_the_vector_and_end_in_noise(kind: str) -> None:
    head = head_of(kind)
    assert isinstance(head, DenoisingHead)
    alpha, sigma = head.schedule(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(alpha[[0, 2]], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(sigma[[0, 2]], torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    assert float(alpha[1]) == pytest.approx(0.5 if kind == "flow" else math.sqrt(0.5))


def sampling_model(kind: str, *, point: bool = False) -> LatentTransformer:
    torch.manual_seed(0)
    settings = ModelSettings(context=8, hidden=16, layers=1, heads=2, dropout=0.1, sampler=kind, sampler_width=16, sampler_blocks=1)  # ty: ignore[invalid-argument-type]
    config = LatentConfig(dim=6, model=settings, encoder={"name": "stub", "dim": 6}, point=point)
    return LatentTransformer(config, Normaliser(torch.randn(6) * 0.1, torch.rand(6) + 0.5)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_model_draws_and_comes_back_from_disk(kind: str, tmp_path: Path) -> None:
    model = sampling_model(kind)
    z_BSD = F.normalize(torch.randn(2, 7, 6), dim=-1)
    model.save_pretrained(tmp_path)
    again = LatentTransformer.from_pretrained(tmp_path)
    for sampling in (None, VectorSampling(steps=4), VectorSampling(steps=4, seed=1)):
        drawn = model.predict(z_BSD, sampling=sampling)
        torch.testing.assert_close(drawn, again.predict(z_BSD, sampling=sampling))
        torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(2, 7))
    assert not torch.allclose(model.predict(z_BSD, sampling=VectorSampling()), model.predict(z_BSD, sampling=VectorSampling(seed=1)))
    torch.testing.assert_close(model.predict_next(z_BSD), model.predict(z_BSD)[:, -1])
    assert not torch.allclose(model.predict(z_BSD), sampling_model(kind, point=True).predict(z_BSD))


def test_rollouts_draw_afresh_at_every_step() -> None:
    model, z_SD = sampling_model("energy"), F.normalize(torch.randn(3, 6), dim=-1)
    first, same, other = (rollout(model, z_SD, 5, sampling=VectorSampling(seed=seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(first, same)
    assert not torch.allclose(first, other)
    assert len({tuple(z_D.tolist()) for z_D in first}) == 5
