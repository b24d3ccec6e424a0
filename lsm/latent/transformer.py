"""The latent transformer: sentence vectors in, the next sentence vector out.

Shape letters: B rows, S sentences, D vector width, H hidden width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsm.config import to_dict
from lsm.corpus.format import require_same_space
from lsm.errors import UserError
from lsm.latent.anchor import Anchor
from lsm.latent.attention import Sight
from lsm.latent.block import Block
from lsm.latent.heads import DenoisingHead, EnergyHead, VectorSampling, make_head
from lsm.latent.lexical import LexicalForecast, LexicalSpace
from lsm.latent.normaliser import Normaliser
from lsm.latent.positions import Positions
from lsm.latent.settings import ModelSettings, RopeScaling
from lsm.latent.space import Part, unit_parts

_ROWS_AT_A_TIME = 64
_SHAPE, _HEAD = ("hidden", "layers", "heads", "ffn_ratio", "positions", "anchor"), ("sampler", "sampler_width", "sampler_blocks")


@dataclass(kw_only=True)
class LatentConfig:
    """What a saved latent transformer needs to be built again, and the encoder whose space it lives in."""

    dim: int
    model: ModelSettings
    encoder: dict[str, Any] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    """What a vector is made of, `dim` in all; empty = the encoder's semantic vectors alone."""
    residual: dict[str, Any] | None = None
    """Fingerprint of the learned code, where it is one of the parts."""
    temperature: float = 0.05
    point: bool = True
    """Whether the head that predicts one vector was trained; where not, the mean of the sampling head stands in for it."""
    guidable: bool = True
    """Whether the sampling head learned to do without the context."""
    lexical: LexicalSpace | None = None
    """What the words of the next sentence are forecast over; None = they are not."""
    restores: bool = True
    """Whether hidden sentences were restored in training; where not, `restore` gives noise."""
    ahead: int = 0
    """Sentences beyond the next that have heads of their own."""


class LatentTransformer(nn.Module):
    """Pre-norm transformer over sentence vectors (RMSNorm, SwiGLU, relative positions) whose head corrects an anchor.

    The correction's weights start at zero, so the untrained model *is* its anchor. Positions are relative: documents packed into one
    row need a mask, and no position numbers of their own.
    """

    def __init__(self, config: LatentConfig, normaliser: Normaliser | None = None) -> None:
        super().__init__()
        settings = config.model
        self.config = config
        self.normaliser = normaliser or Normaliser.identity(config.dim)
        self.embed = nn.Linear(config.dim, settings.hidden)
        self.mask_vector = nn.Parameter(torch.zeros(settings.hidden))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.RMSNorm(settings.hidden, eps=1e-6)
        self.anchor = Anchor(settings.anchor, settings.hidden, config.dim)
        self.correction = nn.Linear(settings.hidden, config.dim)
        self.restoration = nn.Linear(settings.hidden, config.dim)
        shape = {"hidden": settings.hidden, "dim": config.dim, "width": settings.sampler_width, "blocks": settings.sampler_blocks}
        self.sampler = make_head(settings.sampler, **shape)
        self.lexical = LexicalForecast(settings.hidden, config.lexical) if config.lexical else None
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        self.positions = Positions(settings)
        self.attention = settings.attention
        nn.init.normal_(self.mask_vector, std=0.02)
        nn.init.zeros_(self.restoration.bias)
        nn.init.normal_(self.restoration.weight, std=0.02)
        further = [nn.Linear(settings.hidden, config.dim) for _ in range(config.ahead)]
        self.further = nn.ModuleList(further)
        for head in (self.correction, *further):
            nn.init.zeros_(head.bias)
            if settings.anchor == "none":  # nothing to start from: a zero head would have no direction at all
                nn.init.normal_(head.weight, std=0.02)
            else:
                nn.init.zeros_(head.weight)

    @property
    def context(self) -> int:
        """Sentences that the model looks back on."""
        return self.config.model.context

    def widened(self, context: int, rope_scaling: RopeScaling | None = None) -> LatentTransformer:
        """This model, with the same weights, looking back on `context` sentences; `rope_scaling` fits rotary positions to them."""
        settings = replace(self.config.model, context=context)
        if rope_scaling and settings.rope_scale != 1 and rope_scaling != settings.rope_scaling:
            raise UserError(
                f"the model was trained with {settings.rope_scaling} scaling of its rotary positions, not {rope_scaling}; take that"
            )
        if rope_scaling and (settings.positions == "alibi" or context <= self.context):
            raise UserError(
                f"scaling of rotary positions ({rope_scaling}) is for windows longer than the model's {self.context} sentences, and it has "
                f"{settings.positions} positions; leave it out"
            )
        if rope_scaling:
            scale = settings.rope_scale * max(1.0, context / self.context)
            settings = replace(settings, rope_scale=scale, rope_scaling=rope_scaling)
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.config = replace(self.config, model=settings)
        other.positions = Positions(settings).to(self.mask_vector.device)
        return other

    def forward(
        self,
        z_BSD: Tensor,
        segment_BS: Tensor | None = None,
        *,
        section_BS: Tensor | None = None,
        hidden_BS: Tensor | None = None,
        noise_BSD: Tensor | None = None,
    ) -> Tensor:
        """Prediction of sentence s+1 at each position s, in raw space and not scaled to unit length, float32 [B, S, D].

        Attention stays inside equal numbers of `segment_BS` (None = one document a row, padding only at the end). `section_BS` numbers
        the sections of each document (rope-2d; None = one section). `hidden_BS` replaces sentences by the mask vector, and `noise_BSD`
        is added in the normaliser's space: both touch what the transformer reads, never the anchor.
        """
        return self.point(*self.read(z_BSD, segment_BS, section_BS=section_BS, hidden_BS=hidden_BS, noise_BSD=noise_BSD))

    def read(
        self,
        z_BSD: Tensor,
        segment_BS: Tensor | None = None,
        *,
        section_BS: Tensor | None = None,
        hidden_BS: Tensor | None = None,
        noise_BSD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the heads start from, arguments as of `forward`: the anchor [B, S, D] in raw space and the state [B, S, H]."""
        x_BSD = self.normaliser(z_BSD.float())
        sight = self._sight(z_BSD, segment_BS, causal=True)
        state_BSH = self._trunk(x_BSD if noise_BSD is None else x_BSD + noise_BSD, sight, section_BS, hidden_BS)
        return self.anchor(z_BSD.float(), state_BSH, sight.visible_BSS.expand(len(z_BSD), -1, -1)), state_BSH

    def point(self, anchor: Tensor, state: Tensor, ahead: int = 0) -> Tensor:
        """The one vector predicted from anchor […, D] and state […, H], in raw space; `ahead` so many sentences beyond the next."""
        head = self.further[ahead - 1] if ahead else self.correction
        return anchor + head(state).float() * self.normaliser.scale

    def restore(self, z_BSD: Tensor, masked_BS: Tensor, segment_BS: Tensor | None = None, *, section_BS: Tensor | None = None) -> Tensor:
        """Bidirectional pass over rows whose `masked_BS` sentences are hidden: their vectors in the normaliser's space, [B, S, D]."""
        sight = self._sight(z_BSD, segment_BS, causal=False)
        state_BSH = self._trunk(self.normaliser(z_BSD.float()), sight, section_BS, masked_BS)
        return self.restoration(state_BSH).float()

    def _sight(self, z_BSD: Tensor, segment_BS: Tensor | None, *, causal: bool) -> Sight:
        return Sight(self.attention, z_BSD.shape[1], z_BSD.device, segment_BS, causal, self.positions.slopes_A)

    def _trunk(self, x_BSD: Tensor, sight: Sight, section_BS: Tensor | None, hidden_BS: Tensor | None) -> Tensor:
        x_BSH = self.embed(x_BSD).float()
        if hidden_BS is not None:
            x_BSH = torch.where(hidden_BS[..., None], self.mask_vector, x_BSH)
        rotation = self.positions.rotation(sight.width, sight.segment_BS, section_BS)
        for block in self.blocks:
            x_BSH = block(x_BSH, rotation, sight)
        return self.norm(x_BSH)

    @torch.no_grad()
    def predict(
        self,
        z_BSD: Tensor,
        document_BS: Tensor | None = None,
        *,
        section_BS: Tensor | None = None,
        sampling: VectorSampling | None = None,
    ) -> Tensor:
        """Vectors [B, S, D] in raw space, each part of unit length: at each s what sentence s+1 should mean; with `sampling` one that it
        could mean.

        Rows may be longer than the context: each position then looks back on at least half of it. `document_BS` numbers the
        documents of a packed row, `section_BS` the sections of each document (None = one). Without `sampling` a model whose head for one
        vector was not trained gives the mean of its samples.
        """
        generator = torch.Generator().manual_seed(sampling.seed if sampling else 0)
        out_BSD = torch.empty_like(z_BSD, dtype=torch.float32, device=self.mask_vector.device)
        for group, places, anchor_BSD, state_BSH in self._windows(z_BSD, document_BS, section_BS):
            out_BSD[group, places] = self.next_vectors(anchor_BSD, state_BSH, sampling, generator)
        return unit_parts(out_BSD, self.config.parts)

    @torch.no_grad()
    def forecast(self, z_BSD: Tensor, document_BS: Tensor | None = None, *, section_BS: Tensor | None = None) -> Tensor:
        """Expected bag of words of sentence s+1 at each s, [B, S, K], for a model that forecasts words; arguments as of `predict`."""
        assert self.lexical is not None, "a model without a lexical forecast"
        out_BSK = torch.empty(*z_BSD.shape[:2], self.lexical.space.dims, device=self.mask_vector.device)
        for group, places, _, state_BSH in self._windows(z_BSD, document_BS, section_BS):
            out_BSK[group, places] = self.lexical(state_BSH)
        return out_BSK

    def _windows(
        self, z_BSD: Tensor, document_BS: Tensor | None, section_BS: Tensor | None
    ) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Rows, places, and anchor and state there, without dropout: each place once, from windows that overlap by half."""
        assert z_BSD.ndim == 3 and z_BSD.shape[-1] == self.config.dim, f"{tuple(z_BSD.shape)} is not [B, S, {self.config.dim}]"
        was_training = self.training
        self.eval()
        z_BSD = z_BSD.to(self.mask_vector.device, torch.float32)
        S, half = z_BSD.shape[1], max(1, self.context // 2)
        for start in range(0, max(1, S - self.context + half), half):
            window, keep = slice(start, start + self.context), 0 if start == 0 else self.context - half
            for rows in range(0, len(z_BSD), _ROWS_AT_A_TIME):
                group = slice(rows, rows + _ROWS_AT_A_TIME)
                segments, sections = (None if x is None else x[group, window].to(z_BSD.device) for x in (document_BS, section_BS))
                anchor_BSD, state_BSH = self.read(z_BSD[group, window], segments, section_BS=sections)
                yield group, slice(start + keep, start + self.context), anchor_BSD[:, keep:], state_BSH[:, keep:]
        self.train(was_training)

    @torch.no_grad()
    def predict_next(self, z_BSD: Tensor, *, section_BS: Tensor | None = None, sampling: VectorSampling | None = None) -> Tensor:
        """`predict` at the last place alone, [B, D], from at most the last `context` sentences; heads run at that place only."""
        was_training = self.training
        self.eval()
        device, recent = self.mask_vector.device, slice(-self.context, None)
        sections = None if section_BS is None else section_BS[:, recent].to(device)
        anchor_BSD, state_BSH = self.read(z_BSD[:, recent].to(device, torch.float32), section_BS=sections)
        generator = torch.Generator().manual_seed(sampling.seed if sampling else 0)
        next_BD = self.next_vectors(anchor_BSD[:, -1], state_BSH[:, -1], sampling, generator)
        self.train(was_training)
        return unit_parts(next_BD, self.config.parts)

    @torch.no_grad()
    def predict_ahead(self, z_BSD: Tensor, document_BS: Tensor | None = None, *, section_BS: Tensor | None = None) -> Tensor:
        """What the sentences beyond the next should mean, all told from the same place: [B, K, S, D], each part of unit length.

        At k of K and s stands sentence s + 2 + k: the one after the next at k = 0. Arguments as of `forward`, at most `context` sentences.

        Raises:
            UserError: a model trained without `objectives.ahead`.
        """
        if not self.config.ahead:
            raise UserError("this model predicts the next sentence only; to look further ahead, train one with --objectives.ahead 1")
        assert z_BSD.shape[1] <= self.context, f"{z_BSD.shape[1]} sentences are more than the model's {self.context}"
        was_training = self.training
        self.eval()
        device = self.mask_vector.device
        segments, sections = (None if x is None else x.to(device) for x in (document_BS, section_BS))
        anchor_BSD, state_BSH = self.read(z_BSD.to(device, torch.float32), segments, section_BS=sections)
        out_BKSD = torch.stack([self.point(anchor_BSD, state_BSH, k + 1) for k in range(self.config.ahead)], dim=1)
        self.train(was_training)
        return unit_parts(out_BKSD, self.config.parts)

    def next_vectors(
        self, anchor: Tensor, state: Tensor, sampling: VectorSampling | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """From what `read` gives to vectors […, D] in raw space: the expected ones, or with `sampling` drawn ones."""
        if sampling is None and (self.config.point or self.sampler is None):
            return self.point(anchor, state)
        assert isinstance(self.sampler, EnergyHead | DenoisingHead), "a model without a sampling head has nothing to draw from"
        state_NH = state.reshape(-1, state.shape[-1])
        if sampling is None:
            difference_ND = self.sampler.mean(state_NH)
        else:
            difference_ND = self.sampler.sample(state_NH, sampling, generator or torch.Generator().manual_seed(sampling.seed))
        return anchor + difference_ND.view(anchor.shape) * self.normaliser.scale

    def take_weights(self, other: LatentTransformer, origin: Path) -> None:
        """Start from another model: its normaliser and the weights of all that both have. Context and scaling of positions may differ.

        Raises:
            UserError: the models differ in shape or space; the message names `origin`.
        """
        if self.config.encoder and other.config.encoder:
            require_same_space(other.config.encoder, self.config.encoder, what=f"run {origin}")
        mine, theirs = to_dict(self.config.model), to_dict(other.config.model)
        odd = [f"model.{name} {theirs[name]}, not {mine[name]}" for name in _SHAPE if mine[name] != theirs[name]]
        if self.sampler is not None and other.sampler is not None:
            odd += [f"model.{name} {theirs[name]}, not {mine[name]}" for name in _HEAD if mine[name] != theirs[name]]
        if (self.config.parts, self.config.residual) != (other.config.parts, other.config.residual):
            odd.append("other parts of its vectors")
        if self.config.lexical and other.config.lexical and self.config.lexical != other.config.lexical:
            odd.append(f"a forecast of {other.config.lexical.lm}'s words, not {self.config.lexical.lm}'s")
        if odd:
            raise UserError(f"{origin} is a model of another shape ({odd[0]}); give the settings that it was trained with")
        weights, own = other.state_dict(), self.state_dict()
        self.load_state_dict(
            {name: value for name, value in weights.items() if name in own and not name.startswith("positions.")}, strict=False
        )

    def save_pretrained(self, folder: str | Path, card: str | None = None, *, dtype: torch.dtype = torch.float32) -> None:
        """Write model.safetensors, normaliser.safetensors, config.json and README.md (the card) into `folder`.

        A `dtype` other than float32 stores matrices as int8 with a scale for each row, and the rest in `dtype`.
        """
        from lsm.latent.saved import save

        save(self, Path(folder), card, dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> LatentTransformer:
        """Load what `save_pretrained` wrote; `folder` may also be the run whose `final/` holds it, or the name of a shipped model.

        Raises:
            UserError: nothing there, an unfinished run, another kind of thing, or weights that do not fit the config.
        """
        from lsm.latent.saved import load

        return load(Path(folder)).to(device)
