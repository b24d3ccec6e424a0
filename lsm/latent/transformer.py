"""The latent transformer: sentence vectors in, the next sentence vector out.

Shape letters: B rows, S sentences, D vector width, H hidden width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rotary_embedding_torch import RotaryEmbedding
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsm.config import settings_from, to_dict
from lsm.errors import UserError
from lsm.files import read_json, write_json
from lsm.latent.anchor import Anchor
from lsm.latent.normaliser import Normaliser
from lsm.latent.settings import ModelSettings

FORMAT = 2
_ROWS_AT_A_TIME = 64
_NOT_IN_MODEL_FILE = ("normaliser.", "rotary.")  # one has its own file, the other is computed from the config


@dataclass(kw_only=True)
class LatentConfig:
    """What a saved latent transformer needs to be built again, and the encoder whose space it lives in."""

    dim: int
    model: ModelSettings
    encoder: dict[str, Any] = field(default_factory=dict)
    temperature: float = 0.05


class Block(nn.Module):
    """Attention and SwiGLU, each after an RMSNorm and with dropout on what it adds. The residual stream stays float32."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        hidden, inner = settings.hidden, max(32, round(settings.hidden * settings.ffn_ratio / 32) * 32)
        self.heads, self.dropout = settings.heads, settings.dropout
        self.attention_norm, self.ffn_norm = nn.RMSNorm(hidden, eps=1e-6), nn.RMSNorm(hidden, eps=1e-6)
        self.query_key_value = nn.Linear(hidden, 3 * hidden, bias=False)
        self.attention_out = nn.Linear(hidden, hidden, bias=False)
        self.ffn_in = nn.Linear(hidden, 2 * inner, bias=False)
        self.ffn_out = nn.Linear(inner, hidden, bias=False)
        for linear in (self.query_key_value, self.ffn_in):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (self.attention_out, self.ffn_out):
            nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * settings.layers))

    def forward(self, x_BSH: Tensor, rotation: Tensor, mask: Tensor | None) -> Tensor:
        """`mask` [B, 1, S, S] is true where a position may look; None = all positions before it."""
        B, S, H = x_BSH.shape
        qkv = self.query_key_value(self.attention_norm(x_BSH)).view(B, S, 3, self.heads, H // self.heads)
        query_key = rotate(qkv[:, :, :2], rotation).to(_attention_dtype(qkv)).permute(2, 0, 3, 1, 4)
        value = qkv[:, :, 2].to(query_key.dtype).transpose(1, 2)
        with torch.autocast(x_BSH.device.type, enabled=False):  # which would cast back to its own choice
            seen = self.attend(query_key[0], query_key[1], value, mask)
        added = self.attention_out(seen.transpose(1, 2).reshape(B, S, H))
        x_BSH = x_BSH + F.dropout(added.float(), self.dropout, self.training)
        value, gate = self.ffn_in(self.ffn_norm(x_BSH)).chunk(2, -1)
        return x_BSH + F.dropout(self.ffn_out(F.silu(gate) * value).float(), self.dropout, self.training)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What each position reads of the values [B, heads, S, H / heads]."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)


class LatentTransformer(nn.Module):
    """Pre-norm transformer over sentence vectors (RoPE, RMSNorm, SwiGLU, SDPA) whose head corrects an anchor.

    The correction's weights start at zero, so the untrained model *is* its anchor. Rotary positions are relative: documents packed
    into one row need a mask, and no position numbers of their own.
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
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        # Computed afresh each time: its cache would be hidden state of the module.
        self.rotary = RotaryEmbedding(settings.hidden // settings.heads, theta=settings.rope_theta, cache_if_possible=False)
        nn.init.normal_(self.mask_vector, std=0.02)
        for head in (self.correction, self.restoration):
            nn.init.zeros_(head.bias)
        nn.init.normal_(self.restoration.weight, std=0.02)
        if settings.anchor == "none":  # nothing to start from: a zero head would have no direction at all
            nn.init.normal_(self.correction.weight, std=0.02)
        else:
            nn.init.zeros_(self.correction.weight)

    @property
    def context(self) -> int:
        """Sentences that the model looks back on."""
        return self.config.model.context

    def forward(
        self, z_BSD: Tensor, segment_BS: Tensor | None = None, *, hidden_BS: Tensor | None = None, noise_BSD: Tensor | None = None
    ) -> Tensor:
        """Prediction of sentence s+1 at each position s, in raw space and not scaled to unit length, float32 [B, S, D].

        Attention stays inside equal numbers of `segment_BS` (None = one document a row, padding only at the end). `hidden_BS`
        replaces sentences by the mask vector, and `noise_BSD` is added in the normaliser's space: both touch what the transformer
        reads, never the anchor.
        """
        causal_BSS = _visible(z_BSD, segment_BS, causal=True)
        x_BSD = self.normaliser(z_BSD.float())
        mask = None if segment_BS is None else causal_BSS[:, None]
        state_BSH = self._trunk(x_BSD if noise_BSD is None else x_BSD + noise_BSD, mask, hidden_BS)
        anchor_BSD = self.anchor(z_BSD.float(), state_BSH, causal_BSS)
        return anchor_BSD + self.correction(state_BSH).float() * self.normaliser.scale

    def restore(self, z_BSD: Tensor, masked_BS: Tensor, segment_BS: Tensor | None = None) -> Tensor:
        """Bidirectional pass over rows whose `masked_BS` sentences are hidden: their vectors in the normaliser's space, [B, S, D]."""
        visible_BSS = _visible(z_BSD, segment_BS, causal=False)
        state_BSH = self._trunk(self.normaliser(z_BSD.float()), visible_BSS[:, None], masked_BS)
        return self.restoration(state_BSH).float()

    def _trunk(self, x_BSD: Tensor, mask: Tensor | None, hidden_BS: Tensor | None) -> Tensor:
        x_BSH = self.embed(x_BSD).float()
        if hidden_BS is not None:
            x_BSH = torch.where(hidden_BS[..., None], self.mask_vector, x_BSH)
        angles = self.rotary(torch.arange(x_BSD.shape[1], device=x_BSD.device, dtype=torch.float32))[:, ::2]  # each stands there twice
        rotation = torch.polar(torch.ones_like(angles), angles)
        for block in self.blocks:
            x_BSH = block(x_BSH, rotation, mask)
        return self.norm(x_BSH)

    @torch.no_grad()
    def predict(self, z_BSD: Tensor, document_BS: Tensor | None = None) -> Tensor:
        """Unit vectors [B, S, D] in raw space: at each s what sentence s+1 should mean.

        Rows may be longer than the context: each position then looks back on at least half of it. `document_BS` numbers the
        documents of a packed row.
        """
        assert z_BSD.ndim == 3 and z_BSD.shape[-1] == self.config.dim, f"{tuple(z_BSD.shape)} is not [B, S, {self.config.dim}]"
        was_training = self.training
        self.eval()
        z_BSD = z_BSD.to(self.mask_vector.device, torch.float32)
        out_BSD = torch.empty_like(z_BSD)
        S, half = z_BSD.shape[1], max(1, self.context // 2)
        for start in range(0, max(1, S - self.context + half), half):
            window, keep = slice(start, start + self.context), 0 if start == 0 else self.context - half
            for rows in range(0, len(z_BSD), _ROWS_AT_A_TIME):
                group = slice(rows, rows + _ROWS_AT_A_TIME)
                segments = None if document_BS is None else document_BS[group, window].to(z_BSD.device)
                out_BSD[group, start + keep : start + self.context] = self(z_BSD[group, window], segments)[:, keep:]
        self.train(was_training)
        return F.normalize(out_BSD, dim=-1)

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Write model.safetensors, normaliser.safetensors, config.json and README.md (the card) into `folder`."""
        from lsm.latent.card import model_card

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.cpu().contiguous() for name, value in self.state_dict().items() if not name.startswith(_NOT_IN_MODEL_FILE)}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        self.normaliser.save(folder)
        write_json(folder / "config.json", {"kind": "latent-transformer", "format": FORMAT} | to_dict(self.config))
        (folder / "README.md").write_text(card or model_card(self), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> LatentTransformer:
        """Load what `save_pretrained` wrote; `folder` may also be the run whose `final/` holds it.

        Raises:
            UserError: nothing there, an unfinished run, another kind of thing, or weights that do not fit the config.
        """
        folder = Path(folder)
        if not (folder / "config.json").exists() and (folder / "run.json").exists():
            folder = folder / "final"
            if not folder.exists():
                raise UserError(f"run {folder.parent} is not finished (no final/); run its pretrain command again to finish it")
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} holds no latent transformer (no config.json); make one with: lsm pretrain --corpus DIR --out RUN")
        raw = read_json(folder / "config.json")
        if not isinstance(raw, dict) or raw.pop("kind", None) != "latent-transformer" or raw.pop("format", None) != FORMAT:
            raise UserError(
                f"{folder / 'config.json'} does not describe a latent transformer of format {FORMAT}; name a run of lsm pretrain"
            )
        config = settings_from(LatentConfig, raw, origin=str(folder / "config.json"))
        try:
            model = cls(config, Normaliser.load(folder))
            missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        except (OSError, RuntimeError, KeyError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"weights in {folder} are damaged or do not fit its config.json ({reason}); copy or train it again") from error
        absent = [name for name in missing if not name.startswith(_NOT_IN_MODEL_FILE)]
        if absent or unexpected:
            raise UserError(f"weights in {folder} do not fit its config.json: missing {absent[:3]}, unexpected {unexpected[:3]}")
        return model.to(device).eval()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of x [B, S, ..., C] by its angle: `apply_rotary_emb` as one complex product, in float32.

    `rotation` holds cos + i·sin of the angles, complex64 [S, C / 2].
    """
    S, C = x.shape[1], x.shape[-1]
    pairs = torch.view_as_complex(x.float().unflatten(-1, (C // 2, 2)))
    return torch.view_as_real(pairs * rotation.view(1, S, *([1] * (x.ndim - 3)), C // 2)).flatten(-2)


def _attention_dtype(x: Tensor) -> torch.dtype:
    # On CPUs the backward pass of the fused kernel takes twice as long in bf16 as in float32 at our sizes.
    return torch.float32 if x.device.type == "cpu" else x.dtype


def _visible(z_BSD: Tensor, segment_BS: Tensor | None, *, causal: bool) -> Tensor:
    """True where position s (second to last) may see position t (last), bool [B, S, S]."""
    B, S, _ = z_BSD.shape
    same = (
        torch.ones(B, S, S, dtype=torch.bool, device=z_BSD.device) if segment_BS is None else segment_BS[:, :, None] == segment_BS[:, None]
    )
    return same.tril() if causal else same
