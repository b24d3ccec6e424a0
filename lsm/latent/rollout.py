"""Continuing a document in vectors: predict, append, predict again.

Shape letters: S sentences read, N sentences planned, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lsm.latent.heads import VectorSampling
from lsm.latent.transformer import LatentTransformer
from lsm.training.loop import step_seed

OnStep = Callable[[int, Tensor, Tensor], "Tensor | None"]
"""on_step(step, z_D, read_SD) → the vector that takes the plan's place."""


@torch.no_grad()
def rollout(
    model: LatentTransformer,
    z_SD: Tensor,
    n: int,
    *,
    section_S: Tensor | None = None,
    sampling: VectorSampling | None = None,
    on_step: OnStep | None = None,
    until: Callable[[Tensor], bool] | None = None,
) -> Tensor:
    """Plan up to `n` further vectors after the document `z_SD` (raw, at least one sentence): unit vectors [N, D].

    The context is short, so each step recomputes it: a key-value cache would have to be dropped whenever the window moves.

    Args:
        section_S: numbers the sections of what was read; the last one is taken to go on.
        sampling: how each vector is drawn, with noise of its own; None takes the expected ones.
        on_step: sees each vector as it is planned, with what was read before it. It may return the vector that takes its place in the
            document, such as the re-encoding of the sentence written for it or a nudged plan; None keeps it.
        until: the vector for which it holds true is the last.
    """
    assert z_SD.ndim == 2 and len(z_SD) >= 1 and n >= 0, f"{tuple(z_SD.shape)} is not a document [S, {model.config.dim}]"
    read_SD = z_SD.to(model.mask_vector.device, torch.float32)[-model.context :]
    section_S = torch.zeros(len(z_SD), dtype=torch.int64) if section_S is None else section_S
    section_S = section_S[-model.context :]
    planned = []
    for step in range(n):
        drawn = replace(sampling, seed=step_seed(sampling.seed, step)) if sampling else None
        z_D = model.predict_next(read_SD[None], section_BS=section_S[None], sampling=drawn)[0]
        replacement = on_step(step, z_D, read_SD) if on_step else None
        if replacement is not None:
            z_D = replacement.to(read_SD.device, torch.float32)
        planned.append(z_D)
        if until and until(z_D):
            break
        read_SD = torch.cat([read_SD, z_D[None]])[-model.context :]
        section_S = torch.cat([section_S, section_S[-1:]])[-model.context :]
    return torch.stack(planned) if planned else read_SD.new_empty(0, model.config.dim)
