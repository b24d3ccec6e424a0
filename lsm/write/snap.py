"""Pulling a plan onto the manifold of sentences, so that a decoder that knows real sentence vectors only can word it.

Shape letters: S sentences read, D vector width, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from lsm.decode.decoders import Decoder
from lsm.decode.phrase_store import PhraseStore
from lsm.decode.vectors import Encode
from lsm.errors import UserError

if TYPE_CHECKING:
    from lsm.latent.transformer import LatentTransformer

SnapName = Literal["none", "neighbours", "denoiser", "words"]
Snap = Callable[[Tensor, Tensor], Tensor]
"""snap(plan_D, read_SD) → the unit vector [D], on the CPU, that takes the plan's place; `read_SD` stands before it."""
_TEMPERATURE = 0.05


class Neighbours:
    """Replaces a planned vector by the mean of its `k` nearest stored sentences, weighted by a softmax of their cosines, of unit length.

    The nearest one is then used up: a plan that stands still moves on to other sentences instead of repeating itself.
    """

    def __init__(self, store: PhraseStore, k: int) -> None:
        assert k >= 1
        self.store, self.k = store, k
        self._used: set[int] = set()

    def __call__(self, plan_D: Tensor, read_SD: Tensor) -> Tensor:
        """The plan itself when every stored sentence is used up."""
        rows, scores, found_KD = self.store.neighbours(plan_D.numpy()[None], self.k + len(self._used))
        free = [place for place, row in enumerate(rows) if row not in self._used][: self.k]
        if not free:
            return plan_D
        self._used.add(int(rows[free[0]]))
        weight_K = np.exp((scores[free] - scores[free[0]]) / _TEMPERATURE)
        return _unit(torch.from_numpy((weight_K[:, None] * found_KD[free]).sum(0)))


class Denoiser:
    """The latent transformer restores the plan, hidden, from what was read before it and the sentence that it would plan after it.

    What comes back is halfway between the two, since the restoring pass does not see the plan itself. Two more passes a sentence.
    """

    def __init__(self, model: LatentTransformer) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, plan_D: Tensor, read_SD: Tensor) -> Tensor:
        through_SD = torch.cat([read_SD, plan_D.to(read_SD)[None]])
        row_SD = torch.cat([through_SD, self.model.predict_next(through_SD[None])])[-self.model.context :]
        hidden_S = torch.arange(len(row_SD), device=row_SD.device) == len(row_SD) - 2
        restored_D = self.model.normaliser.inverse(self.model.restore(row_SD[None], hidden_S[None])[0, -2])
        return _unit(_unit(restored_D).cpu() + _unit(plan_D))


class Words:
    """Words the plan and encodes the sentence: what can be said of it. One decoder call and one encoder call a sentence."""

    def __init__(self, decoder: Decoder, encode: Encode, *, seed: int = 0) -> None:
        self.decoder, self.encode, self.seed = decoder, encode, seed

    def __call__(self, plan_D: Tensor, read_SD: Tensor) -> Tensor:
        """The plan itself where nothing was written."""
        (text,) = self.decoder.decode(plan_D.numpy()[None], seed=self.seed)
        return _unit(torch.from_numpy(np.asarray(self.encode([text])[0], dtype=np.float32))) if text.strip() else plan_D


def make_snap(
    name: SnapName,
    *,
    model: LatentTransformer,
    decoder: Decoder,
    encode: Encode,
    store: Callable[[], PhraseStore] | None,
    k: int = 16,
    seed: int = 0,
) -> Snap | None:
    """The snap of a name for plans of semantic vectors; None for `none`.

    Args:
        store: opens the stored sentences; None = there are none.

    Raises:
        UserError: neighbours without stored sentences, or a model that cannot denoise.
    """
    if name == "none":
        return None
    if name == "words":
        return Words(decoder, encode, seed=seed)
    if name == "neighbours":
        if store is None:
            raise UserError("snapping to neighbours needs stored sentences: give --index FILE or --corpus DIR")
        return Neighbours(store(), k)
    if not model.config.restores:
        raise UserError("snapping by the denoiser needs a run that was trained with --objectives.denoise; this one was not")
    if model.config.model.positions == "rope-2d":
        raise UserError("snapping by the denoiser knows no sections, which this run's positions (rope-2d) go by; take another snap")
    return Denoiser(model)


def _unit(z_D: Tensor) -> Tensor:
    return z_D / z_D.norm().clamp(min=1e-12)
