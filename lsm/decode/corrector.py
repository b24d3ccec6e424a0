"""The corrector: target vector, hypothesis and its vector become what a frozen LM reads before it writes a better hypothesis.

After vec2text (Morris et al. 2023, eq. 4), whose corrector is an encoder–decoder that reads MLPs of e, ê and e − ê and the hypothesis's
text. Here a decoder-only LM reads, in this order, a soft prefix of ê, the text, a soft prefix of e − ê and one of e: all three come from
one prefix adapter, so that an untrained corrector says what the adapter says, the words still lacking among them.
Shape letters: B rows, D vector width, F trunk width, P prefix positions of one vector, S tokens of a hypothesis, L positions read,
H hidden width of the LM.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lsm.config import settings_from, to_dict
from lsm.decode.adapter import AdapterHome, PrefixAdapter
from lsm.decode.corrector_settings import SLOTS
from lsm.decode.settings import AdapterSettings
from lsm.files import CONFIG
from lsm.lm.lora import stored_lora
from lsm.training.pretrained import Kind

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

_KIND = Kind("lsm corrector", "corrector", "lsm train-decoder --config corrector")


class Corrector(nn.Module):
    """(e, ê, hypothesis) → inputs [B, L, H] of a frozen LM, and the lexical lift that goes with them."""

    def __init__(
        self, adapter: PrefixAdapter, *, lora_rank: int, hypothesis_tokens: int, sentence_tokens: int = 64, hypotheses_of: str = ""
    ) -> None:
        """
        Args:
            hypothesis_tokens: longest hypothesis that is read, in whole eights of the LM's tokens.
            sentence_tokens: longest text that it writes.
            hypotheses_of: sha256 of the adapter (`PrefixAdapter.sha256`) from whose hypotheses it learned.
        """
        super().__init__()
        self.adapter, self.lora_rank, self.hypothesis_tokens = adapter, lora_rank, hypothesis_tokens
        self.sentence_tokens, self.hypotheses_of = sentence_tokens, hypotheses_of
        self.inlet = nn.Linear(3 * adapter.home.dim, 3 * adapter.settings.hidden)
        nn.init.zeros_(self.inlet.weight)
        nn.init.zeros_(self.inlet.bias)
        self.lora = nn.ParameterDict()

    @property
    def home(self) -> AdapterHome:
        """The encoder and the LM that it is bound to."""
        return self.adapter.home

    def trunks(self, z_BD: Tensor, own_BD: Tensor) -> Tensor:
        """Features [B, 3, F] of target, hypothesis and difference; each sees all three.

        Args:
            z_BD: targets; only their direction counts.
            own_BD: what the encoder says of the hypotheses.
        """
        z_BD, own_BD = nn.functional.normalize(z_BD.float(), dim=-1), nn.functional.normalize(own_BD.float(), dim=-1)
        parts_B3D = torch.stack([z_BD, own_BD, z_BD - own_BD], dim=1)
        more_B3F = self.inlet(parts_B3D.flatten(1) * math.sqrt(self.home.dim)).view(len(z_BD), 3, -1)
        return self.adapter.trunk(parts_B3D.flatten(0, 1), more_B3F.flatten(0, 1)).view(len(z_BD), 3, -1)

    def inputs(self, trunks_B3F: Tensor, hypothesis_BS: Tensor, lm: FrozenLM) -> Tensor:
        """What the LM reads [B, L, H], L = 3P + S."""
        soft_RPH = self.adapter.prefix(trunks_B3F.flatten(0, 1), lm).prefix_BPH
        target_BPH, own_BPH, lack_BPH = soft_RPH.view(len(trunks_B3F), 3, *soft_RPH.shape[1:]).unbind(1)
        parts = [own_BPH, lm.embed(hypothesis_BS).to(soft_RPH.dtype), lack_BPH, target_BPH]
        return torch.cat(parts, dim=1)

    def slots(self, n_tokens: int) -> int:
        """Places that a hypothesis of `n_tokens` takes: whole eights, the last of them filled with end tokens.

        A function of the hypothesis alone, so that it is read alike whatever it stands beside in a batch.
        """
        return SLOTS * max(1, math.ceil(min(n_tokens, self.hypothesis_tokens) / SLOTS))

    def in_slots(self, ids: Sequence[int], end_id: int) -> list[int]:
        """A hypothesis's tokens, cut or filled up to its slots."""
        n_slots = self.slots(len(ids))
        return [*ids[:n_slots], *[end_id] * (n_slots - len(ids))]

    def save_pretrained(self, folder: Path, *, card: str, dtype: torch.dtype = torch.float16) -> None:
        """Write config.json, model.safetensors and README.md into the existing `folder`."""
        names = ("lora_rank", "hypothesis_tokens", "sentence_tokens", "hypotheses_of")
        shape: dict[str, Any] = {name: getattr(self, name) for name in names}
        home = dataclasses.asdict(self.home)
        config = {"adapter": to_dict(self.adapter.settings), "home": home, "corrector": shape}
        _KIND.save(folder, self.state_dict(), config, card=card, dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Corrector:
        """Read a corrector's folder (RUN/final, or RUN); its weights become float32.

        Raises:
            UserError: no corrector there, or a damaged one.
        """
        folder, config = _KIND.find(folder)
        with _KIND.reading(folder) as state:
            shape = settings_from(AdapterSettings, config["adapter"], origin=str(folder / CONFIG))
            corrector = cls(PrefixAdapter(shape, AdapterHome(**config["home"])), **config["corrector"])
            corrector.lora = stored_lora(state)
            corrector.load_state_dict(state)
        return corrector.eval()
