"""The learned residual code: an encoder from tokens and token states to a nested code, and the reader that takes it apart again.

Shape letters: B rows, T tokens of the LM, S word pieces of the frozen encoder, D vector width, K dims of a whole code, C token dims,
H hidden width of the LM, F trunk width, V vocabulary, N tokens of all rows.

A code is a sum of token vectors, each bound to its position by a learned matrix (Plate 1995: superposition memories; here everything is
trained), plus what learned queries pool from the frozen encoder's token states. The reader goes from left to right: it sees the code and
what the tokens written so far put into it (interference cancellation, Joseph & Barron 2012), and asks for the next token's vector.
Nested: training keeps a random number of leading dims (Kusupati et al. 2022; Rippel et al. 2014), so any first k dims are a code.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lsm.config import settings_from, to_dict
from lsm.corpus.format import require_same_space
from lsm.decode.adapter import AdapterHome, Prefix, PrefixAdapter
from lsm.decode.learned_code_settings import CodeSettings
from lsm.decode.settings import AdapterSettings
from lsm.decode.shipped import SHIPPED
from lsm.errors import UserError
from lsm.files import CONFIG, fingerprint, read_json
from lsm.lm.lora import stored_lora
from lsm.training.pretrained import WEIGHTS, Kind, weights_sha256

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

_KIND = Kind("lsm learned code", "learned code", "lsm train-decoder --config learned-code")
_IN_INT8 = ("reader.of_code_TKF", "reader.of_written_TKF")
"""What the hidden layer reads, most of the weights."""
BOUND = 4.0
"""Codes have unit variance in every dim and lie within ±BOUND, so that int8 steps of BOUND/127 are finer than any noise trained with."""


class TokenStates(NamedTuple):
    """What the frozen encoder makes of each word piece."""

    states_BSD: Tensor
    mask_BS: Tensor
    """bool: True = a piece, False = padding."""


@dataclasses.dataclass(frozen=True)
class CodeHome:
    """What a learned code is bound to."""

    adapter: AdapterHome
    """Encoder and LM, as for the prefix adapter that reads the semantic vector beside the code."""
    state_width: int
    """Width of the frozen encoder's token states; 0 = they are not read."""
    shipped_adapter: dict[str, str] | None = None
    """Name and sha256 of the adapter that was left as it is and is not stored again."""


class LearnedCode(nn.Module):
    """Tokens (and token states) → code [B, K]; code, semantic vector and what has been written → what comes next."""

    def __init__(self, settings: CodeSettings, adapter: PrefixAdapter, home: CodeHome) -> None:
        super().__init__()
        self.settings, self.home = settings, home
        dims, width, hidden, n_tokens = settings.dims, settings.token_dims, settings.hidden, settings.max_tokens
        self.adapter = adapter
        self.code_inlet = nn.Linear(dims, adapter.settings.hidden, bias=False)
        nn.init.zeros_(self.code_inlet.weight)  # the adapter starts as it was without a code
        self.codebook = nn.Linear(home.adapter.lm_width, width, bias=False)
        self.centre_H: Tensor
        self.mean_K: Tensor
        self.variance_K: Tensor
        self.register_buffer("centre_H", torch.zeros(home.adapter.lm_width))
        self.register_buffer("mean_K", torch.zeros(dims))
        self.register_buffer("variance_K", torch.ones(dims))
        self.binding_TCK = nn.Parameter(torch.randn(n_tokens, width, dims) / math.sqrt(16 * width))
        self.context = _ContextPool(home.state_width, settings.context_queries, dims) if home.state_width else None
        self.reader = _Reader(self.binding_TCK.detach(), hidden)
        self.stand_in = _StandIn(home.adapter.lm_width, width)
        self.lora = nn.ParameterDict()
        self.source = ""

    def fit_embeddings(self, lm: FrozenLM) -> None:
        """Start the codebook on the principal axes of the LM's word embeddings, partly whitened: similar words, similar token vectors."""
        embedded_VH = lm.head_VH.float()
        self.centre_H.copy_(embedded_VH.mean(0))
        centred_VH = embedded_VH - self.centre_H
        values, axes_HH = torch.linalg.eigh(centred_VH.T @ centred_VH / len(centred_VH))
        width = min(self.settings.token_dims, len(values))
        axes_CH, power_C = axes_HH.T.flip(0)[:width], values.flip(0)[:width].clamp(min=1e-12)
        nn.init.zeros_(self.codebook.weight)
        with torch.no_grad():
            self.codebook.weight[:width] = axes_CH * power_C[:, None] ** -0.25

    def token_vectors(self, lm: FrozenLM, ids_N: Tensor) -> Tensor:
        """Unit vectors [N, C] that stand for tokens."""
        return nn.functional.normalize(self.codebook(lm.head_VH[ids_N].float() - self.centre_H), dim=-1)

    def bound(self, lm: FrozenLM, ids_BT: Tensor, mask_BT: Tensor, start: int = 0) -> Tensor:
        """What each token adds to the code [B, T, K]; the first of them stands at position `start`."""
        distinct, place = ids_BT.unique(return_inverse=True)
        tokens_BTC = self.token_vectors(lm, distinct)[place] * mask_BT[..., None]
        binding_TCK = self.binding_TCK[start : start + ids_BT.shape[1]]
        return torch.einsum("btc,tck->btk", tokens_BTC, binding_TCK) * math.sqrt(self.settings.token_dims)

    def in_code_unit(self, bound_BTK: Tensor) -> Tensor:
        """Sums of `bound` as they appear in a code: scaled as the code is."""
        return bound_BTK * torch.rsqrt(self.variance_K + 1e-5)

    def code(self, bound_BTK: Tensor, states: TokenStates | None = None, *, fit: bool = False) -> Tensor:
        """Codes [B, K] of unit variance in every dim, within ±BOUND.

        Args:
            bound_BTK: from `bound`.
            states: the frozen encoder's; None leaves their part out.
            fit: take mean and variance of this batch (and into the running ones, as batch normalisation does).
        """
        x_BK = bound_BTK.sum(1)
        if self.context is not None and states is not None:
            x_BK = x_BK + self.context(states)
        x_BK = nn.functional.batch_norm(x_BK.float(), self.mean_K, self.variance_K, training=fit, momentum=0.02)
        return x_BK.clamp(-BOUND, BOUND)

    def written(self, bound_BTK: Tensor) -> Tensor:
        """What the tokens before each position put into the code [B, T, K], in the code's unit."""
        return self.in_code_unit(bound_BTK.cumsum(1) - bound_BTK)

    def query(self, code_BK: Tensor, written_BTK: Tensor, keep_BK: Tensor, start: int = 0) -> Tensor:
        """The vector [B, T, C] whose product with a token's vector is what the code says for that token at positions `start` …

        Args:
            keep_BK: 1 for the dims that are there, 0 for those cut off; what `code_BK` holds there is not looked at.
        """
        return self.reader(code_BK * keep_BK, written_BTK * keep_BK[:, None], keep_BK, start)

    def trunk(self, z_BD: Tensor, code_BK: Tensor, keep_BK: Tensor) -> Tensor:
        """The adapter's features [B, F] of semantic vector ‖ code."""
        return self.adapter.trunk(z_BD, self.code_inlet(code_BK * keep_BK))

    def prefix(self, trunk_BF: Tensor, lm: FrozenLM) -> Prefix:
        """The adapter's soft prefix."""
        return self.adapter.prefix(trunk_BF, lm)

    def keep(self, lengths_B: Tensor) -> Tensor:
        """1 for each row's first `lengths_B` dims, 0 for the others, [B, K] float32."""
        return (torch.arange(self.settings.dims, device=lengths_B.device) < lengths_B[:, None]).float()

    def save_pretrained(self, folder: Path, *, card: str, dtype: torch.dtype = torch.float16) -> None:
        """Write config.json, model.safetensors and README.md into the existing `folder`; float32 stores every weight as it is."""
        left_out = ("stand_in.", "adapter.") if self.home.shipped_adapter is not None else ("stand_in.",)
        state = {name: value for name, value in self.state_dict().items() if not name.startswith(left_out)}
        config = {"code": to_dict(self.settings), "adapter": to_dict(self.adapter.settings), "home": dataclasses.asdict(self.home)}
        _KIND.save(folder, state, config, card=card, dtype=dtype, in_int8=lambda name, _: name in _IN_INT8)

    @classmethod
    def from_pretrained(cls, folder: Path) -> LearnedCode:
        """Read a learned code's folder (RUN/final, or RUN); its weights become float32.

        Raises:
            UserError: no learned code there, or a damaged one.
        """
        folder, config = _KIND.find(folder)
        with _KIND.reading(folder) as state:
            home = CodeHome(**config["home"] | {"adapter": AdapterHome(**config["home"]["adapter"])})
            if home.shipped_adapter is not None:
                adapter = _shipped(home.shipped_adapter, home.adapter.encoder)
            else:
                adapter = PrefixAdapter(settings_from(AdapterSettings, config["adapter"], origin=str(folder / CONFIG)), home.adapter)
            code = cls(settings_from(CodeSettings, config["code"], origin=str(folder / CONFIG)), adapter, home)
            code.lora = stored_lora(state)
            if home.shipped_adapter is not None:
                state |= {f"adapter.{name}": value for name, value in adapter.state_dict().items()}
            state |= {f"stand_in.{name}": value for name, value in code.stand_in.state_dict().items()}  # training alone needs it
            code.load_state_dict(state)
        code.source = weights_sha256(folder)
        return code.eval()

    def fingerprint(self) -> dict[str, Any]:
        """Which code this is: codes of another one are not read."""
        home = self.home.adapter
        return {
            "kind": "learned", "sha256": self.source, "dims": self.settings.dims, "max_tokens": self.settings.max_tokens,
            "encoder": fingerprint(home.encoder.get("sha256")), "lm": fingerprint(home.lm.get("sha256")),
        }  # fmt: skip


class _ContextPool(nn.Module):
    """Attention pooling of token states by learned queries, padding masked out (set transformers' PMA, Lee et al. 2019)."""

    def __init__(self, state_width: int, n_queries: int, dims: int) -> None:
        super().__init__()
        self.queries_QD = nn.Parameter(torch.randn(n_queries, state_width) / math.sqrt(state_width))
        self.out = nn.Linear(n_queries * state_width, dims)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: TokenStates) -> Tensor:
        # Padded states may hold anything, NaN too: a weight of zero would not silence that.
        states_BSD = states.states_BSD.masked_fill(~states.mask_BS[..., None], 0.0)
        score_BQS = (states_BSD @ self.queries_QD.T).transpose(1, 2)
        weight_BQS = score_BQS.masked_fill(~states.mask_BS[:, None], -torch.inf).softmax(-1)
        return self.out((weight_BQS @ states_BSD).flatten(1))


class _Reader(nn.Module):
    """A matched filter for each position on code less written, and a hidden layer that sees both and which dims are there."""

    def __init__(self, binding_TCK: Tensor, hidden: int) -> None:
        super().__init__()
        n_tokens, width, dims = binding_TCK.shape
        self.filter_TKC = nn.Parameter((4 * math.sqrt(width) * binding_TCK.transpose(1, 2)).contiguous())
        self.bias_TC = nn.Parameter(torch.zeros(n_tokens, width))
        self.of_code_TKF = nn.Parameter(torch.randn(n_tokens, dims, hidden) / math.sqrt(dims))
        self.of_written_TKF = nn.Parameter(-self.of_code_TKF.detach().clone())
        self.of_position_TF = nn.Parameter(torch.zeros(n_tokens, hidden))
        self.of_length = nn.Linear(dims, hidden)
        self.out = nn.Linear(hidden, width)
        nn.init.normal_(self.out.weight, std=0.1 * math.sqrt(width / hidden))
        nn.init.zeros_(self.out.bias)

    def forward(self, code_BK: Tensor, written_BTK: Tensor, keep_BK: Tensor, start: int) -> Tensor:
        at = slice(start, start + written_BTK.shape[1])
        left_BTK = code_BK[:, None] - written_BTK
        query_BTC = torch.einsum("btk,tkc->btc", left_BTK, self.filter_TKC[at]) + self.bias_TC[at]
        hidden_BTF = torch.einsum("bk,tkf->btf", code_BK, self.of_code_TKF[at])
        hidden_BTF = hidden_BTF + torch.einsum("btk,tkf->btf", written_BTK, self.of_written_TKF[at])
        hidden_BTF = hidden_BTF + self.of_position_TF[at] + self.of_length(keep_BK)[:, None]
        return query_BTC + self.out(nn.functional.gelu(hidden_BTF))


class _StandIn(nn.Module):
    """What the last two tokens say of the next one: it stands in for the LM where that is not run, so that the code need not say it."""

    def __init__(self, lm_width: int, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.inlet = nn.Linear(lm_width, width)
        self.up, self.down = nn.Linear(2 * width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, embedded_BTH: Tensor) -> Tensor:
        x_BTC = nn.functional.pad(self.inlet(embedded_BTH), (0, 0, 2, 0))  # two empty places before the first token
        last_BTC, before_BTC = x_BTC[:, 1:-1], x_BTC[:, :-2]
        return self.down(nn.functional.gelu(self.up(torch.cat([last_BTC, before_BTC], dim=-1))))


def _shipped(named: dict[str, str], encoder: dict[str, Any]) -> PrefixAdapter:
    folder = SHIPPED / named["name"]
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"this learned code needs the shipped adapter {named['name']}, which this version of lsm does not have; update lsm")
    require_same_space(read_json(folder / CONFIG)["home"]["encoder"], encoder, what=f"adapter {named['name']}")
    if (found := weights_sha256(folder)) != named["sha256"]:
        raise UserError(
            f"this learned code was trained with adapter {named['name']} of sha256 {named['sha256'][:12]}, the one here has {found[:12]}; "
            "use the version of lsm that it was made with, or train it again"
        )
    return PrefixAdapter.from_pretrained(folder)
