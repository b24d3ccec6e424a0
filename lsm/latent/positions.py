"""Where a sentence stands: rotary angles along one axis (rope) or two (rope-2d), or a bias by distance (alibi).

All three are relative: documents packed into one row need no numbers of their own.

Shape letters: B rows, S sentences, A heads, C channels of a head.
"""

from __future__ import annotations

import math

import torch
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor, nn

from lsm.latent.settings import ModelSettings


class Positions(nn.Module):
    """The positions that `settings` names, for `LatentTransformer`.

    rope: Su et al. 2021, frequencies of rotary-embedding-torch. rope-2d: the first half of a head's channels turns by the number of the
    section, the second by the place within it. alibi: no rotation, and scores fall linearly with distance (Press et al. 2022). Rotary
    angles can be made to fit windows `rope_scale` times as long as those trained on: `linear` divides the positions (Chen et al. 2023,
    Position Interpolation), `ntk` raises the base so that the fastest channel stays and the slowest is divided (NTK-aware scaling).
    """

    slopes_A: Tensor | None
    """How fast each head's scores fall with distance, float32; None where positions rotate."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.kind, channels = settings.positions, settings.hidden // settings.heads
        self.divisor = settings.rope_scale if settings.rope_scaling == "linear" else 1.0
        slopes_A = torch.tensor(alibi_slopes(settings.heads)) if self.kind == "alibi" else None
        self.register_buffer("slopes_A", slopes_A, persistent=False)
        if self.kind == "alibi":
            return
        # Computed afresh each time: its cache would be hidden state of the module.
        self.rotary = RotaryEmbedding(
            channels // 2 if self.kind == "rope-2d" else channels,
            theta=settings.rope_theta,
            theta_rescale_factor=settings.rope_scale if settings.rope_scaling == "ntk" else 1.0,
            cache_if_possible=False,
        )

    def rotation(self, width: int, segment_BS: Tensor | None, section_BS: Tensor | None) -> Tensor | None:
        """cos + i·sin of each channel pair's angle, complex64 [S, C / 2] or (rope-2d) [B, S, C / 2]; None for alibi.

        Without `section_BS` a document is one section.
        """
        if self.kind == "alibi":
            return None
        device = self.rotary.freqs.device
        if self.kind == "rope-2d":
            if section_BS is None:
                section_BS = torch.zeros((1, width) if segment_BS is None else segment_BS.shape, dtype=torch.int64, device=device)
            axes = (section_BS, within_sections(section_BS, segment_BS))
        else:
            axes = (torch.arange(width, device=device, dtype=torch.float32),)
        places = (axis.float() if self.divisor == 1 else axis.float() / self.divisor for axis in axes)
        angles = torch.cat([self.rotary(place)[..., ::2] for place in places], dim=-1)  # each stands there twice
        return torch.polar(torch.ones_like(angles), angles)


def within_sections(section_BS: Tensor, segment_BS: Tensor | None) -> Tensor:
    """Place of each sentence in its section, counted from the section's first sentence in the row, int64 [B, S]."""
    fresh_BS = torch.ones_like(section_BS, dtype=torch.bool)
    fresh_BS[:, 1:] = section_BS[:, 1:] != section_BS[:, :-1]
    if segment_BS is not None:
        fresh_BS[:, 1:] |= segment_BS[:, 1:] != segment_BS[:, :-1]
    place_S = torch.arange(section_BS.shape[1], device=section_BS.device)
    return place_S - torch.where(fresh_BS, place_S, 0).cummax(1).values


def alibi_slopes(heads: int) -> list[float]:
    """2^(−8/n), 2^(−16/n) … for n heads (Press et al. 2022, §3); when n is no power of two, those of the largest one below it and then
    every other one of the next, as in the authors' code."""
    floor = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * k / floor) for k in range(1, floor + 1)]
    return slopes + [2 ** (-4 * k / floor) for k in range(1, 2 * (heads - floor), 2)]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of x [B, S, ..., C] by its angle: `apply_rotary_emb` as one complex product, in float32.

    `rotation` holds cos + i·sin of the angles, complex64 [S, C / 2] or [B, S, C / 2].
    """
    S, C = x.shape[1], x.shape[-1]
    pairs = torch.view_as_complex(x.float().unflatten(-1, (C // 2, 2)))
    return torch.view_as_real(pairs * rotation.view(-1, S, *([1] * (x.ndim - 3)), C // 2)).flatten(-2)
