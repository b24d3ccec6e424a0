"""The prefix adapter: one sentence vector becomes soft positions and a lexical lift for a frozen LM.

Shape letters: B rows, D vector width, F trunk width, P prefix positions, T tokens, H hidden width of the LM.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lsm.config import settings_from, to_dict
from lsm.decode.settings import AdapterSettings
from lsm.errors import UserError
from lsm.files import CONFIG
from lsm.lm.lora import stored_lora
from lsm.lm.loss import frozen_cross_entropy, row_means
from lsm.training.pretrained import Kind

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

_KIND = Kind("lsm prefix adapter", "adapter", "lsm train-decoder")


@dataclasses.dataclass(frozen=True)
class AdapterHome:
    """What an adapter is bound to: it is of no use with another encoder or LM."""

    encoder: dict[str, Any]
    """Fingerprint of the encoder whose vectors it reads."""
    lm: dict[str, str]
    """Fingerprint of the frozen LM it speaks through."""
    dim: int
    """Width of the vectors, D."""
    lm_width: int
    """Hidden width of the LM, H."""
    vocabulary: int
    """Tokens of the LM, V."""
    embedding_rms: float
    """Size of the LM's input embeddings, at which the prefix starts."""

    @classmethod
    def of(cls, lm: FrozenLM, *, encoder: dict[str, Any], dim: int) -> AdapterHome:
        """Between this LM and vectors of `dim` numbers of this encoder."""
        return cls(encoder, lm.fingerprint(), dim, lm.width, len(lm.head_VH), round(lm.embedding_rms(), 6))


class Prefix(NamedTuple):
    """A soft prefix and, where it is built on soft words, what it says of them."""

    prefix_BPH: Tensor
    lift_BPH: Tensor | None
    """Each position's words as a lift of the LM's output layer."""
    logsumexp_BP: Tensor | None
    """Normaliser of the words' probabilities, for their loss."""


class PrefixAdapter(nn.Module):
    """Vector → trunk → prefix [P, H], and (trunk, what has been written) → lexical lift of the final hidden state.

    The prefix is a soft prompt computed from the vector (Li & Liang 2021, prefix tuning). With `soft_words` each of its positions starts as
    a mixture of word embeddings, so that the LM finds words in it, as it does in any text. The lift is added to the final hidden state, so
    that with a tied output layer every word's logit rises by its embedding's product with it; what has been written so far enters as the
    sum of its input embeddings, so that a word is lifted until it has been said.
    """

    def __init__(self, settings: AdapterSettings, home: AdapterHome) -> None:
        super().__init__()
        self.settings, self.home = settings, home
        width, lm_width = settings.hidden, home.lm_width
        self.inlet = nn.Linear(home.dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(width)
        self.prefix_head = nn.Linear(width, settings.prefix_length * lm_width)
        # Half of the prefix's size comes from the vector and half from what all sentences share.
        nn.init.normal_(self.prefix_head.weight, std=home.embedding_rms * math.sqrt(0.5 / width))
        nn.init.normal_(self.prefix_head.bias, std=home.embedding_rms * math.sqrt(0.5))
        self.word_head: nn.Linear | None = None
        self.word_offset_V: Tensor
        if settings.soft_words:
            self.word_head = nn.Linear(width, settings.prefix_length * lm_width)
            nn.init.zeros_(self.word_head.weight)
            nn.init.zeros_(self.word_head.bias)
            self.register_buffer("word_offset_V", torch.zeros(home.vocabulary))  # log frequency of words, set by training
            self.word_scale = nn.Parameter(torch.ones(settings.prefix_length, 1))
            nn.init.normal_(self.prefix_head.weight, std=home.embedding_rms * 0.1 / math.sqrt(width))
            nn.init.normal_(self.prefix_head.bias, std=home.embedding_rms * 0.1)
        self.lexical_head = _LexicalHead(width, lm_width) if settings.lexical else None
        self.lora = nn.ParameterDict()

    def trunk(self, z_BD: Tensor, more_BF: Tensor | None = None) -> Tensor:
        """Features [B, F]; only the direction of a vector counts, so vectors stored at any scale are read alike.

        Args:
            more_BF: what else is known of the sentence, added where the vector comes in.
        """
        x_BF = self.inlet(nn.functional.normalize(z_BD.float(), dim=-1) * math.sqrt(self.home.dim))
        if more_BF is not None:
            x_BF = x_BF + more_BF
        for block in self.blocks:
            x_BF = block(x_BF)
        return self.norm(x_BF)

    def prefix(self, trunk_BF: Tensor, lm: FrozenLM) -> Prefix:
        """Soft prefix for `lm`, with what it is made of."""
        shape = (len(trunk_BF), self.settings.prefix_length, self.home.lm_width)
        prefix_BPH = self.prefix_head(trunk_BF).view(shape)
        if self.word_head is None:
            return Prefix(prefix_BPH, None, None)
        lift_BPH = self.word_head(trunk_BF).view(shape).float()
        logsumexp_N, mean_NH = lm.soft_words(lift_BPH.flatten(0, 1), self.word_offset_V)
        return Prefix(prefix_BPH + self.word_scale * mean_NH.view(shape), lift_BPH, logsumexp_N.view(shape[:2]))

    def bias(self, trunk_BF: Tensor, spoken_BTH: Tensor, n_tokens_T: Tensor) -> Tensor | None:
        """Lexical lift [B, T, H], or None for an adapter without one.

        Args:
            spoken_BTH: sum of the input embeddings of the tokens written before each position.
            n_tokens_T: how many those are, [T] or [B, T].
        """
        if self.lexical_head is None:
            return None
        scale = self.home.embedding_rms * torch.sqrt(1.0 + n_tokens_T)
        return self.lexical_head(trunk_BF, spoken_BTH / scale[..., None], n_tokens_T)

    def save_pretrained(self, folder: Path, *, card: str, dtype: torch.dtype = torch.float16) -> None:
        """Write config.json, model.safetensors and README.md into the existing `folder`. float16 halves what is shipped."""
        _KIND.save(
            folder, self.state_dict(), {"adapter": to_dict(self.settings), "home": dataclasses.asdict(self.home)}, card=card, dtype=dtype
        )

    @classmethod
    def from_pretrained(cls, folder: Path) -> PrefixAdapter:
        """Read an adapter's folder (RUN/final, or RUN); its weights become float32.

        Raises:
            UserError: no adapter there, or a damaged one.
        """
        folder, config = _KIND.find(folder)
        with _KIND.reading(folder) as state:
            shape = settings_from(AdapterSettings, config["adapter"], origin=str(folder / CONFIG))
            adapter = cls(shape, AdapterHome(**config["home"]))
            adapter.lora = stored_lora(state)
            adapter.load_state_dict(state)
        return adapter.eval()

    def start_from(self, other: PrefixAdapter) -> None:
        """Take the weights of another one, but for its LoRA layers.

        Raises:
            UserError: it has another shape.
        """
        if other.settings != self.settings or (other.home.dim, other.home.lm_width) != (self.home.dim, self.home.lm_width):
            raise UserError(
                f"the adapter to start from reads {other.home.dim} numbers and has the shape {other.settings}; write both into the config"
            )
        self.load_state_dict({name: value for name, value in other.state_dict().items() if not name.startswith("lora.")}, strict=False)

    def sha256(self) -> str:
        """What tells one adapter's weights from another's."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF + self.down(nn.functional.gelu(self.up(self.norm(x_BF))))


class _LexicalHead(nn.Module):
    def __init__(self, width: int, lm_width: int) -> None:
        super().__init__()
        self.of_vector = nn.Linear(width, lm_width)
        self.of_spoken = nn.Linear(lm_width + 1, lm_width)
        self.mix = nn.Linear(lm_width, lm_width)
        self.direct = nn.Linear(width, lm_width)
        for layer in (self.mix, self.direct):  # no lift at first
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.gate = nn.Parameter(torch.ones(1))

    def forward(self, trunk_BF: Tensor, spoken_BTH: Tensor, n_tokens_T: Tensor) -> Tensor:
        count_BT1 = torch.log1p(n_tokens_T.to(spoken_BTH.dtype)).expand(spoken_BTH.shape[:2])[..., None]
        told_BTH = self.of_spoken(torch.cat([spoken_BTH, count_BT1], dim=-1))
        mixed_BTH = self.mix(nn.functional.gelu(self.of_vector(trunk_BF)[:, None] + told_BTH))
        return self.gate * (self.direct(trunk_BF)[:, None] + mixed_BTH)


def sentence_loss(
    adapter: PrefixAdapter, lm: FrozenLM, z_BD: Tensor, ids_BT: Tensor, mask_BT: Tensor, prompt_1QH: Tensor | None = None
) -> tuple[Tensor, Prefix]:
    """Mean cross-entropy of each row's tokens in nats [B] when the LM reads the vectors through the adapter, and the prefix it read.

    Gradients flow into the adapter and into `z_BD`. Arguments as of `FrozenLM.prefix_loss` and `sentence_hidden`.
    """
    hidden_BTH, prefix = sentence_hidden(adapter, lm, z_BD, ids_BT, prompt_1QH)
    with torch.autocast(lm.device.type, enabled=False):
        return row_means(frozen_cross_entropy(hidden_BTH[mask_BT], lm.head_VH, ids_BT[mask_BT]), mask_BT), prefix


def sentence_hidden(
    adapter: PrefixAdapter, lm: FrozenLM, z_BD: Tensor, ids_BT: Tensor, prompt_1QH: Tensor | None = None
) -> tuple[Tensor, Prefix]:
    """What the output layer reads [B, T, H] at each token when the LM reads the vectors through the adapter, and the prefix it read.

    Args:
        prompt_1QH: input embeddings that the LM reads between the prefix and the tokens.
    """
    trunk_BF = adapter.trunk(z_BD)
    prefix = adapter.prefix(trunk_BF, lm)
    spoken_BTH = spoken_before(lm.embed(ids_BT))
    bias_BTH = adapter.bias(trunk_BF, spoken_BTH, torch.arange(ids_BT.shape[1], device=lm.device))
    read_BPH = prefix.prefix_BPH
    if prompt_1QH is not None:
        read_BPH = torch.cat([read_BPH.to(lm.dtype), prompt_1QH.expand(len(z_BD), -1, -1)], 1)
    with torch.autocast(lm.device.type, enabled=False):  # the LM has its own dtype
        return lm.prefix_hidden(read_BPH, ids_BT, bias_BTH), prefix


def spoken_before(embedded_BTH: Tensor) -> Tensor:
    """Sum of the embeddings before each position [B, T, H] float32: zeros at the first."""
    sums_BTH = embedded_BTH.float().cumsum(1)
    return torch.cat([torch.zeros_like(sums_BTH[:, :1]), sums_BTH[:, :-1]], dim=1)
