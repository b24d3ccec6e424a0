"""The weighted sum of objectives over a batch, and how hard each pulls.

Shape letters: B rows, S sentences, D vector width, H hidden width, N queries, M candidates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lsm.corpus.sampler import VectorDocuments
from lsm.latent import objectives
from lsm.latent.ahead import ahead_loss
from lsm.latent.batch import LatentBatch
from lsm.latent.heads import DenoisingHead, EnergyHead
from lsm.latent.settings import ObjectiveSettings
from lsm.latent.space import judged_dims
from lsm.latent.transformer import LatentTransformer
from lsm.latent.words import WordLosses, word_loss
from lsm.lm.frozen import FrozenLM

_SHARED_BY = {"infonce": "contrast", "in_document": "contrast", "denoise": "denoise", "words": "words", "text_lm": "words"}
"""Which of `LatentBatch.weights` an objective is a mean over; the rest are means over all queries (`others`)."""


class WeightedSum:
    """Reads a batch once and asks every objective that has a weight.

    Args:
        source: whose texts the objectives in words take.
        decoder: for `words` and `text_lm`.
        lexical_lm: for `lexical`.
        accumulate: batches of one step.
        processes: that share a batch.
    """

    def __init__(
        self,
        model: LatentTransformer,
        goals: ObjectiveSettings,
        source: VectorDocuments,
        *,
        decoder: WordLosses | None,
        lexical_lm: FrozenLM | None,
        accumulate: int,
        processes: int,
    ) -> None:
        self.model, self.goals, self.source, self.decoder, self.lexical_lm = model, goals, source, decoder, lexical_lm
        self.accumulate, self.processes = accumulate, processes
        self.gradients: dict[str, Tensor] = {}
        """Of the last batch, known once its loss has gone backward."""

    def __call__(self, batch: LatentBatch) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
        """The weighted sum, its parts, and anchor [B, S, D] and state [B, S, H]."""
        goals, model = self.goals, self.model
        anchor_BSD, state_BSH = model.read(
            batch.z_BSD, batch.segment_BS, section_BS=batch.section_BS, hidden_BS=batch.hidden_BS, noise_BSD=batch.noise_BSD
        )
        target_ND = batch.z_BSD.flatten(0, 1)[batch.target_N]
        self.gradients = {}
        parts: dict[str, Tensor] = {}
        if goals.mse:
            predicted_ND = model.point(anchor_BSD, self._watched("mse", state_BSH)).flatten(0, 1)[batch.source_N]
            parts["mse"] = objectives.mse(predicted_ND, target_ND, model.normaliser.scale)
        if goals.contrasts:
            predicted_ND = model.point(anchor_BSD, self._watched("infonce", state_BSH)).flatten(0, 1)[batch.source_N[batch.contrast_N]]
            logits_NM = objectives.contrast_logits(
                predicted_ND, batch.candidate_MD, model.log_temperature, temperature_min=goals.temperature_min
            )
            if goals.infonce:
                parts["infonce"] = objectives.infonce(logits_NM, batch.blocked_NM, focus=goals.focus, own_N=batch.own_N)
            if goals.in_document:
                blocked_NM = batch.blocked_NM | (batch.document_M[batch.own_N][:, None] != batch.document_M[None])
                parts["in_document"] = objectives.infonce(logits_NM, blocked_NM, focus=goals.focus, own_N=batch.own_N)
        for name in ("words", "text_lm"):
            if self.decoder is not None and getattr(goals, name):
                predicted_ND = model.point(anchor_BSD, self._watched(name, state_BSH)).flatten(0, 1)[batch.source_N[batch.worded_N]]
                predicted_ND = predicted_ND[:, judged_dims(model.config.parts)]
                parts[name] = word_loss(name, self.decoder, predicted_ND, batch, self.source)
        if model.lexical is not None and self.lexical_lm is not None:
            state_NH = self._watched("lexical", state_BSH).flatten(0, 1)[batch.source_N]
            texts = self.source.text_at(batch.target_row_N)
            parts["lexical"] = model.lexical.loss(state_NH, self.lexical_lm.tokens.encode_exact(texts))
        if isinstance(model.sampler, EnergyHead | DenoisingHead):
            missing_ND = (target_ND - anchor_BSD.flatten(0, 1)[batch.source_N]) / model.normaliser.scale
            state_NH = self._watched("sampler", state_BSH).flatten(0, 1)[batch.source_N]
            parts["sampler"] = (
                model.sampler.loss(state_NH, missing_ND, samples=goals.energy_samples)
                if isinstance(model.sampler, EnergyHead)
                else model.sampler.loss(state_NH, missing_ND, hide=goals.hide_state)
            )
        if goals.denoise:
            rows = len(batch.masked_BS)
            restored_BSD = model.restore(batch.z_BSD[:rows], batch.masked_BS, batch.masked_segment_BS, section_BS=batch.section_BS[:rows])
            parts["denoise"] = objectives.denoise(restored_BSD, model.normaliser(batch.z_BSD[:rows]), batch.masked_BS)
        parts = {name: value * batch.weights[_SHARED_BY.get(name, "others")] for name, value in parts.items()}
        if goals.ahead:  # weighted distance by distance
            parts["ahead"] = ahead_loss(model, anchor_BSD, self._watched("ahead", state_BSH), batch.z_BSD, batch.ahead)
        total = torch.stack([getattr(goals, name) * value.float() for name, value in parts.items()]).sum()
        return total, parts, (anchor_BSD, state_BSH)

    def _watched(self, name: str, state_BSH: Tensor) -> Tensor:
        """The state under a name: the backward pass leaves in `gradients` the norm of what the objective sends back through its head (not
        through the anchor), for the loss of this batch with its weight. Both InfoNCE terms share one."""
        if not state_BSH.requires_grad:
            return state_BSH
        own_BSH, norm = state_BSH.view_as(state_BSH), torch.zeros((), device=state_BSH.device)

        def keep_norm(gradient_BSH: Tensor) -> None:
            # Each of W processes sees W times its part of the gradient: the whole one's norm is theirs over √W, where they are alike.
            norm.copy_(gradient_BSH.float().norm() * self.accumulate / math.sqrt(self.processes))

        own_BSH.register_hook(keep_norm)
        self.gradients[f"gradient_{name}"] = norm
        return own_BSH
