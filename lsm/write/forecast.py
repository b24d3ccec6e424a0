"""The words forecast with each plan, found again by the plan when it is worded.

Shape letters: B plans asked for, N plans remembered, S sentences read, D vector width, K dims of a bag, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lsm.decode.decoders import Decoder, PrefixDecoder
from lsm.decode.vectors import unit
from lsm.errors import UserError
from lsm.latent.space import judged_dims
from lsm.latent.transformer import LatentTransformer
from lsm.lm.tokens import log_odds

_THE_SAME = 1 - 1e-4


class Forecasts:
    """Log odds of the words of plans, as `lsm.decode.in_context` takes them. A vector with which nothing was forecast lifts nothing.

    A plan is known by what a decoder sees of it, its semantic part at unit length.
    """

    def __init__(self, model: LatentTransformer) -> None:
        assert model.lexical is not None, "a model without a lexical forecast"
        self.model, self.lexical, self.seen = model, model.lexical, judged_dims(model.config.parts)
        self._plans: list[np.ndarray] = []
        self._bags: list[Tensor] = []

    def foresee(self, plan_D: np.ndarray, read_SD: Tensor, section_S: Tensor) -> None:
        """Forecast the words of the sentence after `read_SD`, whose sections are `section_S`; `plan_D` stands for it."""
        self.keep(plan_D, self.model.forecast(read_SD[None], section_BS=section_S[None])[0, -1])

    def keep(self, plan_D: np.ndarray, bag_K: Tensor) -> None:
        """Remember the bag of a plan."""
        self._plans.append(unit(plan_D[None, self.seen])[0])
        self._bags.append(bag_K)

    @torch.no_grad()
    def __call__(self, z_BD: np.ndarray) -> Tensor:
        """Log odds [B, V]."""
        bags_BK = torch.zeros(len(z_BD), self.lexical.space.dims, device=self.lexical.share_V.device)
        if self._plans:
            cosine_BN = unit(z_BD) @ np.stack(self._plans).T
            for row, nearest in enumerate(cosine_BN.argmax(1)):
                if cosine_BN[row, nearest] > _THE_SAME:
                    bags_BK[row] = self._bags[nearest]
        return log_odds(self.lexical.shares(bags_BK), self.lexical.share_V)


def forecasts_for(model: LatentTransformer, decoder: Decoder, run: Path) -> Forecasts:
    """The forecasts of the model in `run`, for the words of `decoder`.

    Raises:
        UserError: the model forecasts no words, or those of another LM than the decoder's.
    """
    if model.lexical is None:
        raise UserError(f"--forecast: {run} forecasts no words; pretrain with --objectives.lexical 1")
    assert isinstance(decoder, PrefixDecoder)
    model.lexical.attach(decoder.lm)
    return Forecasts(model)
