"""The objective `ahead`: sentences beyond the next, each told by a head of its own from the same place.

Gloeckle et al. 2024 predict several tokens so, to have the trunk plan further; here the heads correct the anchor of the next sentence.

Shape letters: B rows, S sentences, D vector width, H hidden width, N places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsm.corpus.sampler import PackedBatch
from lsm.latent import objectives

if TYPE_CHECKING:
    from lsm.latent.transformer import LatentTransformer


@dataclass(frozen=True)
class Further:
    """The flat places of a process's rows that have a sentence so far on in their window."""

    source_N: Tensor
    target_N: Tensor
    """Where that sentence stands."""
    weight: float
    """What this process's mean counts in the mean over the processes, as `LatentBatch.weights`: the further on, the fewer places."""


def further_sentences(packed: PackedBatch, own: PackedBatch, heads: int, *, processes: int, device: torch.device) -> tuple[Further, ...]:
    """Sentences 2, 3 … 1 + `heads` further on, in `own` rows of the whole `packed` batch."""
    found = []
    for distance in range(2, 2 + heads):
        everywhere, _ = objectives.next_sentences(packed, distance=distance)
        source, target = objectives.next_sentences(own, distance=distance)
        weight = processes * len(source) / max(1, len(everywhere))
        found.append(Further(torch.from_numpy(source).to(device), torch.from_numpy(target).to(device), weight))
    return tuple(found)


def ahead_loss(model: LatentTransformer, anchor_BSD: Tensor, state_BSH: Tensor, z_BSD: Tensor, ahead: Sequence[Further]) -> Tensor:
    """Mean over the distances of the mean squared error in the normaliser's space; a distance that no window has counts nothing."""
    anchor_PD, state_PH, z_PD = (x.flatten(0, 1) for x in (anchor_BSD, state_BSH, z_BSD))
    losses = []
    for head, far in enumerate(ahead, start=1):
        predicted_ND = model.point(anchor_PD[far.source_N], state_PH[far.source_N], head)
        error = objectives.mse(predicted_ND, z_PD[far.target_N], model.normaliser.scale) if len(far.source_N) else predicted_ND.sum()
        losses.append(far.weight * error)
    return torch.stack(losses).mean()
