"""The trained part of the reasoning stack: token states → idea vector → middle → thought → soft prefix.

Shape letters: B rows, S tokens of the encoder, E encoder width, D idea width, P prefix positions, H hidden width of the LM, U slots.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lsm.config import settings_from, to_dict
from lsm.decode.adapter import AdapterHome, PrefixAdapter
from lsm.errors import UserError
from lsm.files import read_json, write_json
from lsm.reason.settings import MiddleSettings, StackSettings

WEIGHTS, CONFIG, FORMAT = "model.safetensors", "config.json", "lsm reasoning stack"
_POOLING_HEADS = 4


class ReasonModel(nn.Module):
    """Pooling, compression, middle and expansion.

    Every part but the expansion starts as the identity (or, where widths differ, as an orthogonal map), so that the stack starts as the
    encoder's pooled vector read through the adapter: with a trained adapter it speaks from the first step.
    """

    def __init__(self, settings: StackSettings, home: AdapterHome, *, max_input_tokens: int, notes: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.settings, self.home = settings, home
        self.max_input_tokens = max_input_tokens
        self.notes: dict[str, Any] = notes or {}
        """What evaluation wants to know of the training data: lead_k, n_rows and such."""
        width = int(home.encoder["dim"])
        self.pooling = _AttentionPooling(width) if settings.pooling == "attention" else None
        self.compress = _Compress(width, settings.compress_hidden, settings.latent_dim)
        self.middle = _middle(settings.middle, settings.latent_dim)
        self.expansion = PrefixAdapter(settings.expansion, home)

    def ideas(self, states_BSE: Tensor, mask_BS: Tensor) -> Tensor:
        """Idea vectors [B, D] of unit length."""
        if self.settings.pooling == "cls":
            pooled_BE = states_BSE[:, 0]
        elif self.pooling is not None:
            pooled_BE = self.pooling(states_BSE, mask_BS)
        else:
            pooled_BE = (states_BSE * mask_BS[..., None]).sum(1) / mask_BS.sum(1, keepdim=True)
        return nn.functional.normalize(self.compress(pooled_BE).float(), dim=-1)

    def think(self, ideas_BD: Tensor) -> Tensor:
        """What the middle makes of ideas [B, D], of unit length; zeros are an idea too."""
        x_BD = ideas_BD * math.sqrt(self.settings.latent_dim)
        return nn.functional.normalize((x_BD + self.middle(x_BD)).float(), dim=-1)

    def save_pretrained(self, folder: Path, *, card: str) -> None:
        """config.json, float16 weights and README.md in the existing `folder`."""
        state = {name: value.detach().cpu().to(torch.float16).contiguous() for name, value in self.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": FORMAT})
        config = {"format": FORMAT, "stack": to_dict(self.settings), "home": dataclasses.asdict(self.home)}
        write_json(folder / CONFIG, config | {"max_input_tokens": self.max_input_tokens, "notes": self.notes})
        (folder / "README.md").write_text(card, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path) -> ReasonModel:
        """Read the folder `final` of a run, or the run.

        Raises:
            UserError: no stack there, or a damaged one.
        """
        folder = folder if (folder / CONFIG).exists() else folder / "final"
        if not (folder / CONFIG).exists():
            raise UserError(f"{folder.parent} holds no finished stack; name a folder that lsm reason train wrote")
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise UserError(f"{folder / CONFIG} is not of a reasoning stack; name a folder that lsm reason train wrote")
        try:
            settings = settings_from(StackSettings, config["stack"], origin=str(folder / CONFIG))
            home = AdapterHome(**config["home"])
            model = cls(settings, home, max_input_tokens=config["max_input_tokens"], notes=config["notes"])
            state = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
            lora = {name.removeprefix("expansion.lora."): value for name, value in state.items() if name.startswith("expansion.lora.")}
            model.expansion.lora = nn.ParameterDict({name: nn.Parameter(value) for name, value in lora.items()})
            model.load_state_dict(state)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"stack {folder} is damaged or incomplete ({str(error).splitlines()[0]}); train it again") from error
        return model.eval()


class _AttentionPooling(nn.Module):
    """A weighted mean of the token states, weights of its own for each quarter of the width; it starts as the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = math.gcd(_POOLING_HEADS, width)
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, self.heads, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, states_BSE: Tensor, mask_BS: Tensor) -> Tensor:
        score_BSU = self.score(self.norm(states_BSE)).float().masked_fill(~mask_BS[..., None], -torch.inf)
        parts_BSUC = states_BSE.unflatten(-1, (self.heads, -1))
        return (score_BSU.softmax(1)[..., None] * parts_BSUC).sum(1).flatten(1)


class _Compress(nn.Module):
    def __init__(self, width: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if width == latent and not hidden else nn.Linear(width, latent, bias=False)
        if isinstance(self.skip, nn.Linear):
            nn.init.eye_(self.skip.weight) if width == latent else nn.init.orthogonal_(self.skip.weight)
        self.mlp = None
        if hidden:
            self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, latent))
            _silence(self.mlp[-1])

    def forward(self, pooled_BE: Tensor) -> Tensor:
        direction_BE = nn.functional.normalize(pooled_BE, dim=-1) * math.sqrt(pooled_BE.shape[-1])
        return self.skip(direction_BE) if self.mlp is None else self.skip(direction_BE) + self.mlp(direction_BE)


class _Mlp(nn.Module):
    def __init__(self, settings: MiddleSettings, width: int) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, settings.hidden), nn.GELU(), nn.Linear(settings.hidden, width))
            for _ in range(settings.layers)
        ]
        for block in blocks:
            _silence(block[-1])
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x_BD: Tensor) -> Tensor:
        y_BD = x_BD
        for block in self.blocks:
            y_BD = y_BD + block(y_BD)
        return y_BD - x_BD


class _SlotTransformer(nn.Module):
    def __init__(self, settings: MiddleSettings, width: int) -> None:
        super().__init__()
        self.slots, hidden = settings.slots, settings.hidden
        self.inlet, self.outlet = nn.Linear(width // self.slots, hidden), nn.Linear(hidden, width // self.slots)
        self.place = nn.Parameter(torch.randn(self.slots, hidden) * 0.02)
        heads = math.gcd(8, hidden)
        layer = nn.TransformerEncoderLayer(hidden, heads, 2 * hidden, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(hidden), enable_nested_tensor=False)
        _silence(self.outlet)

    def forward(self, x_BD: Tensor) -> Tensor:
        states_BUH = self.inlet(x_BD.unflatten(-1, (self.slots, -1))) + self.place
        return self.outlet(self.layers(states_BUH)).flatten(1)


class _Gru(nn.Module):
    def __init__(self, settings: MiddleSettings, width: int) -> None:
        super().__init__()
        self.steps = settings.steps
        self.start, self.cell = nn.Linear(width, settings.hidden), nn.GRUCell(width, settings.hidden)
        self.outlet = nn.Linear(settings.hidden, width)
        _silence(self.outlet)

    def forward(self, x_BD: Tensor) -> Tensor:
        state_BH, change_BD = self.start(x_BD).tanh(), torch.zeros_like(x_BD)
        for _ in range(self.steps):
            state_BH = self.cell(x_BD + change_BD, state_BH)
            change_BD = self.outlet(state_BH)
        return change_BD


class _Nothing(nn.Module):
    def forward(self, x_BD: Tensor) -> Tensor:
        return torch.zeros_like(x_BD)


def _middle(settings: MiddleSettings, width: int) -> nn.Module:
    if settings.kind == "identity":
        return _Nothing()
    return {"mlp": _Mlp, "transformer": _SlotTransformer, "gru": _Gru}[settings.kind](settings, width)


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
