"""The trained part of the reasoning stack: token states → idea vector → middle → thought → soft prefix.

Shape letters: B rows, S tokens of the encoder, E encoder width, D idea width, P prefix positions, H hidden width of the LM, U slots.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lsm.config import settings_from, to_dict
from lsm.connector.idea import IdeaMap, middle_model
from lsm.connector.pooling import AttentionPooling
from lsm.decode.adapter import AdapterHome, PrefixAdapter
from lsm.files import CONFIG
from lsm.lm.lora import stored_lora
from lsm.reason.settings import StackSettings
from lsm.training.pretrained import Kind

_KIND = Kind("lsm reasoning stack", "stack", "lsm reason train")


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
        self.pooling = AttentionPooling(width) if settings.pooling == "attention" else None
        self.compress = IdeaMap(width, settings.compress_hidden, settings.latent_dim)
        self.middle = middle_model(settings.middle, settings.latent_dim)
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
        config = {"stack": to_dict(self.settings), "home": dataclasses.asdict(self.home)}
        _KIND.save(folder, self.state_dict(), config | {"max_input_tokens": self.max_input_tokens, "notes": self.notes}, card=card)

    @classmethod
    def from_pretrained(cls, folder: Path) -> ReasonModel:
        """Read the folder `final` of a run, or the run.

        Raises:
            UserError: no stack there, or a damaged one.
        """
        folder, config = _KIND.find(folder)
        with _KIND.reading(folder) as state:
            settings = settings_from(StackSettings, config["stack"], origin=str(folder / CONFIG))
            home = AdapterHome(**config["home"])
            model = cls(settings, home, max_input_tokens=config["max_input_tokens"], notes=config["notes"])
            model.expansion.lora = stored_lora(state, "expansion.lora.")
            model.load_state_dict(state)
        return model.eval()
