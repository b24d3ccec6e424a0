"""Heads that draw the next sentence vector instead of averaging over all of them: energy score, flow matching, diffusion.

Each models what is missing between the anchor and the next vector, in the normaliser's units, given the transformer's state. The
transformer runs once a position; only the head runs once a sample or a step (as in MAR, Li et al. 2024).

Shape letters: N positions, M samples, D vector width, H hidden width, E width of the head.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["none", "energy", "flow", "diffusion"]
_TIME_CHANNELS = 64
_FIRST_TIME, _LAST_TIME = 1e-3, 0.999
_SAMPLES_OF_A_MEAN = 32


@dataclass(frozen=True, kw_only=True)
class VectorSampling:
    """How vectors are drawn from a head."""

    temperature: float = 1.0
    """Scale of the noise that is fed in, or of what it changes (energy): 0 gives one vector always, 1 the distribution that was learned."""
    steps: int = 40
    """Steps from noise to a vector (flow, diffusion)."""
    guidance: float = 1.0
    """How far to go from what the head says without context to what it says with it, and beyond (flow, diffusion; Ho & Salimans 2022)."""
    rescale: float = 0.7
    """Share of a guided vector that is brought back to the unguided one's spread (Lin et al. 2024, eq. 16)."""
    seed: int = 0
    """Of the noise."""


class ConditionedMLP(nn.Module):
    """Residual SwiGLU blocks on x, whose norms are shifted and scaled by a condition (adaptive layer norm, Peebles & Xie 2023)."""

    def __init__(self, dim_in: int, condition: int, width: int, blocks: int, dim_out: int) -> None:
        super().__init__()
        self.inlet = nn.Linear(dim_in, width)
        self.modulation = nn.ModuleList(nn.Linear(condition, 2 * width) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.out = nn.Linear(width, dim_out)
        for linear in (*self.modulation, self.out):
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x […, dim_in] and a condition […, C] that broadcasts against it → […, dim_out]."""
        x = self.inlet(x)
        for modulation, up, down in zip(self.modulation, self.up, self.down, strict=True):
            shift, scale = modulation(condition).chunk(2, -1)
            value, gate = up(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift).chunk(2, -1)
            x = x + down(F.silu(gate) * value)
        return self.out(F.layer_norm(x, x.shape[-1:]))


class EnergyHead(nn.Module):
    """A network that turns noise into samples, trained by the energy score, which is least in expectation for the true distribution alone.

    The score's exponent is 1: with 2 it is the squared error of the mean in disguise (Gneiting & Raftery 2007, eq. 22; as a head of a
    language model on vectors: CALM, Shao et al. 2025).
    """

    def __init__(self, hidden: int, dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.noise_dims = width
        self.network = ConditionedMLP(width, hidden, width, blocks, dim)

    def loss(self, state_NH: Tensor, target_ND: Tensor, *, samples: int) -> Tensor:
        """Mean energy score over √D: about the error of a dimension in the normaliser's units."""
        noise_NME = torch.randn(len(state_NH), samples, self.noise_dims, device=state_NH.device)
        x_NMD = self.network(noise_NME, state_NH[:, None]).float()
        return energy_score(x_NMD, target_ND).mean() / math.sqrt(target_ND.shape[-1])

    def sample(self, state_NH: Tensor, sampling: VectorSampling, generator: torch.Generator) -> Tensor:
        """One sample a position, [N, D]; a temperature other than 1 scales its difference from the mean of the samples."""
        noise_NE = _noise((len(state_NH), self.noise_dims), generator, state_NH.device)
        x_ND = self.network(noise_NE, state_NH).float()
        return x_ND if sampling.temperature == 1 else torch.lerp(self.mean(state_NH), x_ND, sampling.temperature)

    def mean(self, state_NH: Tensor) -> Tensor:
        """The mean of 32 samples, [N, D], from the same draws of noise at every position and every call."""
        noise_ME = _noise((_SAMPLES_OF_A_MEAN, self.noise_dims), torch.Generator().manual_seed(0), state_NH.device)
        return torch.stack([self.network(noise_E.expand(len(state_NH), -1), state_NH).float() for noise_E in noise_ME]).mean(0)


class DenoisingHead(nn.Module):
    """A network that recovers a vector from its mixture with noise, x_t = α(t)·x + σ(t)·ε, by predicting x itself.

    `flow`: α = 1 − t, σ = t (rectified flow, Liu et al. 2023; flow matching, Lipman et al. 2023). `diffusion`: α = cos πt/2, σ = sin πt/2
    (the cosine schedule of Nichol & Dhariwal 2021). Times are drawn evenly. Sampling goes from noise to a vector in equal steps of time,
    each keeping the noise it finds (DDIM, Song et al. 2021), which for `flow` is Euler's method. In a share of the training the state
    is hidden, for guidance.
    """

    def __init__(self, kind: Literal["flow", "diffusion"], hidden: int, dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.kind, self.dim = kind, dim
        self.state = nn.Linear(hidden, width)
        self.time = nn.Sequential(nn.Linear(_TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.no_state = nn.Parameter(torch.zeros(width))
        self.network = ConditionedMLP(dim, width, width, blocks, dim)

    def loss(self, state_NH: Tensor, target_ND: Tensor, *, hide: float) -> Tensor:
        """Mean squared error of the recovered vector, in the normaliser's units squared; `hide`: share of positions without their state."""
        N, device = len(state_NH), state_NH.device
        time_N1 = torch.rand(N, 1, device=device) * (_LAST_TIME - _FIRST_TIME) + _FIRST_TIME
        alpha_N1, sigma_N1 = self.schedule(time_N1)
        target_ND = target_ND.detach()  # the anchor is not to move for the sake of an easier mixture
        mixture_ND = alpha_N1 * target_ND + sigma_N1 * torch.randn(target_ND.shape, device=device)
        condition_NE = torch.where(torch.rand(N, 1, device=device) < hide, self.no_state, self.state(state_NH).float())
        return (self._recover(mixture_ND, time_N1, condition_NE) - target_ND).square().mean()

    def sample(self, state_NH: Tensor, sampling: VectorSampling, generator: torch.Generator) -> Tensor:
        """One sample a position, [N, D]."""
        x_ND = _noise((len(state_NH), self.dim), generator, state_NH.device) * sampling.temperature
        condition_NE = self.state(state_NH).float()
        times = torch.linspace(_LAST_TIME, 0, sampling.steps + 1, device=x_ND.device)
        recovered_ND = x_ND
        for now, then in itertools.pairwise(times):
            time_N1 = now.expand(len(x_ND), 1)
            recovered_ND = self._recover(x_ND, time_N1, condition_NE)
            if sampling.guidance != 1:
                blind_ND = self._recover(x_ND, time_N1, self.no_state.expand_as(condition_NE))
                recovered_ND = guided(recovered_ND, blind_ND, sampling.guidance, sampling.rescale)
            alpha, sigma = self.schedule(now)
            next_alpha, next_sigma = self.schedule(then)
            x_ND = next_alpha * recovered_ND + next_sigma * (x_ND - alpha * recovered_ND) / sigma
        return recovered_ND

    def mean(self, state_NH: Tensor) -> Tensor:
        """What is recovered from noise alone, [N, D]: the mean of the distribution, as nothing tells its vectors apart."""
        noise_ND = torch.zeros(len(state_NH), self.dim, device=state_NH.device)
        return self._recover(noise_ND, noise_ND.new_full((len(noise_ND), 1), _LAST_TIME), self.state(state_NH).float())

    def schedule(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at times from 0 (the vector) to 1 (noise)."""
        if self.kind == "flow":
            return 1 - time, time
        angle = time * (math.pi / 2)
        return angle.cos(), angle.sin()

    def _recover(self, mixture_ND: Tensor, time_N1: Tensor, condition_NE: Tensor) -> Tensor:
        octaves = 2.0 ** torch.linspace(0, 8, _TIME_CHANNELS // 2, device=time_N1.device)
        waves_NC = torch.cat([(time_N1 * octaves).sin(), (time_N1 * octaves).cos()], dim=-1)
        return self.network(mixture_ND, condition_NE + self.time(waves_NC)).float()


def make_head(kind: Kind, *, hidden: int, dim: int, width: int, blocks: int) -> EnergyHead | DenoisingHead | None:
    """The head of a kind; None for `none`."""
    if kind == "none":
        return None
    return EnergyHead(hidden, dim, width, blocks) if kind == "energy" else DenoisingHead(kind, hidden, dim, width, blocks)


def energy_score(x_NMD: Tensor, target_ND: Tensor) -> Tensor:
    """E‖X − y‖ − ½ E‖X − X′‖ from M ≥ 2 samples a position, both terms without bias: [N]."""
    M = x_NMD.shape[1]
    assert M >= 2, "the spread of one sample cannot be measured"
    to_truth_N = (x_NMD - target_ND[:, None]).norm(dim=-1).mean(1)
    first, second = torch.triu_indices(M, M, offset=1, device=x_NMD.device)
    apart_N = (x_NMD[:, first] - x_NMD[:, second]).norm(dim=-1).mean(1)
    return to_truth_N - apart_N / 2


def guided(with_state_ND: Tensor, without_ND: Tensor, guidance: float, rescale: float) -> Tensor:
    """Classifier-free guidance, its spread over the dimensions partly brought back to the unguided vector's."""
    x_ND = without_ND + guidance * (with_state_ND - without_ND)
    same_spread_ND = x_ND * (with_state_ND.std(-1, keepdim=True) / x_ND.std(-1, keepdim=True).clamp(min=1e-6))
    return rescale * same_spread_ND + (1 - rescale) * x_ND


def _noise(shape: tuple[int, int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Drawn on the CPU: the same on every device."""
    return torch.randn(shape, generator=generator).to(device)
