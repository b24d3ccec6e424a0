"""The words forecast with each plan, found again by the plan when it is worded.

Shape letters: B plans, S sentences read, D vector width, K dims of a bag, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lsm.codes.alphabet import Alphabet
from lsm.decode.decoders import Decoder, PrefixDecoder
from lsm.errors import UserError
from lsm.latent.transformer import LatentTransformer
from lsm.lm.tokens import log_odds


class Forecasts:
    """Log odds of the words of plans, as `lsm.decode.in_context` takes them. A vector with which nothing was forecast lifts nothing."""

    def __init__(self, model: LatentTransformer) -> None:
        assert model.lexical is not None, "a model without a lexical forecast"
        self.model, self.lexical = model, model.lexical
        self._bags: dict[bytes, Tensor] = {}

    def foresee(self, plan_D: np.ndarray, read_SD: Tensor) -> None:
        """Forecast the words of the sentence after `read_SD`, which `plan_D` stands for."""
        self.keep(plan_D, self.model.forecast(read_SD[None])[0, -1])

    def keep(self, plan_D: np.ndarray, bag_K: Tensor) -> None:
        """Remember the bag of a plan."""
        self._bags[plan_D.tobytes()] = bag_K

    @torch.no_grad()
    def __call__(self, z_BD: np.ndarray) -> Tensor:
        """Log odds [B, V]."""
        none_K = torch.zeros(self.lexical.space.dims, device=self.lexical.share_V.device)
        bags_BK = torch.stack([self._bags.get(z_D.tobytes(), none_K) for z_D in z_BD])
        return log_odds(self.lexical.shares(bags_BK), self.lexical.share_V)


def forecasts_for(model: LatentTransformer, decoder: Decoder, run: Path) -> Forecasts:
    """The forecasts of the model in `run`, for the words of `decoder`.

    Raises:
        UserError: the model forecasts no words, or over another tokenizer than the decoder's LM has.
    """
    if model.lexical is None:
        raise UserError(f"--forecast: {run} forecasts no words; pretrain with --objectives.lexical 1")
    assert isinstance(decoder, PrefixDecoder)
    alphabet, space = Alphabet(decoder.lm.tokens), model.lexical.space
    if alphabet.sha256 != space.vocabulary_sha256:
        raise UserError(
            f"--forecast: {run} forecasts over {space.vocabulary:,} tokens (sha256 {space.vocabulary_sha256[:12]}), the LM that writes, "
            f"{decoder.lm.name}, has {alphabet.size:,} ({alphabet.sha256[:12]}); pretrain with --lexical-lm {decoder.lm.name}"
        )
    return Forecasts(model)
