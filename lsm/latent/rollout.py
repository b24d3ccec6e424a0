"""Continuing a document in vectors: predict, append, predict again.

Shape letters: S sentences read, N sentences planned, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lsm.latent.transformer import LatentTransformer

Sampler = Callable[[Tensor], Tensor]
"""Sentences read [S, D] → the vector [D] planned after them."""
OnStep = Callable[[int, Tensor, Tensor], "Tensor | None"]
"""on_step(step, z_D, read_SD) → the vector that takes the plan's place."""


@torch.no_grad()
def rollout(
    model: LatentTransformer,
    z_SD: Tensor,
    n: int,
    *,
    sampler: Sampler | None = None,
    on_step: OnStep | None = None,
    until: Callable[[Tensor], bool] | None = None,
) -> Tensor:
    """Plan up to `n` further vectors after the document `z_SD` (raw, not empty): [N, D], unit vectors unless a sampler says otherwise.

    The context is short, so each step recomputes it: a key-value cache would have to be dropped whenever the window moves.

    Args:
        sampler: draws the next vector; None takes the model's prediction.
        on_step: sees each vector as it is planned, with what was read before it. It may return the vector that takes its place in the
            document, such as the re-encoding of the sentence written for it or a nudged plan; None keeps it.
        until: the vector for which it holds true is the last.
    """
    assert z_SD.ndim == 2 and len(z_SD) >= 1 and n >= 0, f"{tuple(z_SD.shape)} is not a document [S, {model.config.dim}]"
    draw = sampler or predicted(model)
    read_SD = z_SD.to(model.mask_vector.device, torch.float32)[-model.context :]
    planned = []
    for step in range(n):
        z_D = draw(read_SD)
        replacement = on_step(step, z_D, read_SD) if on_step else None
        if replacement is not None:
            z_D = replacement.to(read_SD.device, torch.float32)
        planned.append(z_D)
        if until and until(z_D):
            break
        read_SD = torch.cat([read_SD, z_D[None]])[-model.context :]
    return torch.stack(planned) if planned else read_SD.new_empty(0, model.config.dim)


def predicted(model: LatentTransformer) -> Sampler:
    """The sampler that takes the model's prediction."""
    return lambda read_SD: model.predict(read_SD[None])[0, -1]
