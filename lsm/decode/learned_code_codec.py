"""Learned codes in use: texts → codes, codes (and semantic vectors) → texts, written by the frozen LM under what the code says.

Shape letters: B texts, A hypotheses being written, W beam width, k dims of the codes at hand, K dims of a whole code, D vector width,
C token dims, H hidden width of the LM, V vocabulary, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm.decode.learned_code import BOUND, LearnedCode, TokenStates
from lsm.decode.vectors import check_vectors
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM, same_lm
from lsm.lm.lora import attach_lora, detach_lora, has_lora
from lsm.lm.tokens import pad_ids

StatesOf = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Texts → the frozen encoder's token states [B, S, D] float32 and their mask [B, S], on any device."""
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Coded:
    """The learned codes of B texts."""

    codes_BK: np.ndarray
    """float32, within ±BOUND; any first k columns are codes too."""
    n_tokens_B: np.ndarray
    """int32: tokens of the text, end token included."""
    cut_B: np.ndarray
    """bool: the text was longer than a code holds, and its end is not in it."""


@dataclass(frozen=True)
class Written:
    """What was read back from B codes."""

    texts: list[str]
    certified_B: np.ndarray
    """Always False: a learned code cannot say that it was read rightly."""
    log_probability_B: np.ndarray
    """float64: nats of the text (and its end) given code and semantic vector."""


class LearnedCodec:
    """Encodes and decodes with one learned code, its frozen LM and the frozen encoder's token states."""

    name = "learned-code"
    encoder_calls_per_sentence = 0.0

    def __init__(self, lm: FrozenLM, code: LearnedCode, states_of: StatesOf | None = None, *, beam: int = 1) -> None:
        """Raises `UserError` when the code was trained with another LM, or reads token states and none are given."""
        home = code.home.adapter
        if not same_lm(home.lm, lm):
            raise UserError(
                f"the learned code speaks through LM {home.lm.get('name')} (sha256 {home.lm.get('sha256', '')[:12]}), "
                f"not {lm.name} (sha256 {lm.sha256[:12]}); load that LM or train a code for this one"
            )
        assert beam >= 1
        self.lm, self.code, self.states_of, self.beam, self.encoder = lm, code.to(lm.device).eval(), states_of, beam, home.encoder
        if code.lora:
            if has_lora(lm):
                detach_lora(lm)
            attach_lora(lm, code.settings.lora_rank).load_state_dict(code.lora.state_dict())

    def fingerprint(self) -> dict[str, Any]:
        """Which code this is."""
        return self.code.fingerprint()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Coded:
        """Whole codes; a text's code is a function of the text alone, up to rounding."""
        if self.code.context is not None and self.states_of is None:
            raise UserError("this learned code reads the frozen encoder's token states: load its encoder beside it")
        ids = self.lm.tokens.encode(texts)
        most = self.code.settings.max_tokens
        pieces = [
            self._encode(texts[i : i + _ROWS_AT_ONCE], [[*row, self.lm.tokens.end_id][:most] for row in ids[i : i + _ROWS_AT_ONCE]])
            for i in range(0, len(texts), _ROWS_AT_ONCE)
        ]
        n_tokens_B = np.array([len(row) + 1 for row in ids], dtype=np.int32)
        codes_BK = torch.cat(pieces).cpu().numpy() if pieces else np.zeros((0, self.code.settings.dims), np.float32)
        return Coded(codes_BK, n_tokens_B, n_tokens_B > most)

    def decode(self, codes_Bk: np.ndarray, z_BD: np.ndarray | None = None, *, beam: int | None = None) -> Written:
        """Text of each code; certified is always False.

        Args:
            codes_Bk: any number of leading dims, 0 too.
            z_BD: semantic vectors of the code's encoder; None writes from the codes alone.
            beam: hypotheses kept for each text; None = the codec's own.

        Raises:
            UserError: wrong width, NaN or infinity; the row is named.
        """
        k, dims = codes_Bk.shape[-1], self.code.settings.dims
        if codes_Bk.ndim != 2 or k > dims:
            raise UserError(f"learned codes have shape {list(codes_Bk.shape)}: this one reads [n, k] with k up to {dims}")
        if (bad_B := ~np.isfinite(codes_Bk).all(axis=1)).any():
            raise UserError(
                f"learned code {int(bad_B.argmax())} holds NaN or infinity ({int(bad_B.sum())} such rows); encode its text again"
            )
        if z_BD is None:
            z_BD = np.zeros((len(codes_Bk), self.code.home.adapter.dim), np.float32)
        if len(z_BD) != len(codes_Bk):
            raise UserError(f"{len(codes_Bk)} learned codes and {len(z_BD)} vectors: each code needs the vector of its sentence")
        check_vectors(z_BD, self.code.home.adapter.dim, self.encoder)
        texts: list[str] = []
        scores: list[float] = []
        for start in range(0, len(codes_Bk), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            code_BK = torch.nn.functional.pad(torch.from_numpy(codes_Bk[some].astype(np.float32)), (0, dims - k)).to(self.lm.device)
            keep_BK = self.code.keep(torch.full((len(code_BK),), k, device=self.lm.device))
            z_some = torch.from_numpy(np.ascontiguousarray(z_BD[some], dtype=np.float32)).to(self.lm.device)
            for score, ids in write(self.lm, self.code, z_some, code_BK, keep_BK, beam=beam or self.beam):
                texts.append(self.lm.tokens.decode(ids).strip())
                scores.append(score)
        return Written(texts, np.zeros(len(texts), bool), np.array(scores))

    def _encode(self, texts: Sequence[str], rows: list[list[int]]) -> Tensor:
        ids_BT, mask_BT = (x.to(self.lm.device) for x in pad_ids(rows, self.lm.tokens.end_id))
        states = None
        if self.code.context is not None and self.states_of is not None:
            states = TokenStates(*(x.to(self.lm.device) for x in self.states_of(texts)))
        return self.code.code(self.code.bound(self.lm, ids_BT, mask_BT), states)


@torch.inference_mode()
def write(
    lm: FrozenLM, code: LearnedCode, z_BD: Tensor, code_BK: Tensor, keep_BK: Tensor, *, beam: int = 1
) -> list[tuple[float, list[int]]]:
    """The best hypothesis of each row: its log-probability and its ids, the end token left out.

    Each step multiplies what the LM expects after prefix and tokens with what the code says once these tokens are taken off it.
    """
    device, most = lm.device, code.settings.max_tokens
    table_VC = code.token_vectors(lm, torch.arange(len(lm.head_VH), device=device))
    trunk_BF = code.trunk(z_BD, code_BK, keep_BK)
    inputs, cache = code.prefix(trunk_BF, lm).prefix_BPH, None
    row_A, ids_AT = torch.arange(len(z_BD), device=device), torch.zeros(len(z_BD), 0, dtype=torch.int64, device=device)
    score_A, spoken_AH = torch.zeros(len(z_BD), device=device), torch.zeros(len(z_BD), lm.width, device=device)
    written_AK = torch.zeros_like(code_BK)
    best: list[tuple[float, list[int]]] = [(-np.inf, [])] * len(z_BD)
    for t in range(most):
        if not len(row_A):
            break
        bias_A1H = code.adapter.bias(trunk_BF[row_A], spoken_AH[:, None], torch.tensor([t], device=device))
        logits_AV, cache = lm.step(inputs, cache, None if bias_A1H is None else bias_A1H[:, 0])
        logits_AV += code.query(code_BK[row_A], written_AK[:, None], keep_BK[row_A], start=t)[:, 0] @ table_VC.T
        top_AW, token_AW = (logits_AV.log_softmax(-1) + score_A[:, None]).topk(min(beam, logits_AV.shape[1]), dim=1)
        going: list[tuple[int, int, float]] = []  # hypothesis it comes from, token, score
        for b, mine in _by_row(row_A, top_AW, token_AW):
            fresh = []
            for score, a, token in sorted(mine, reverse=True)[:beam]:
                if token == lm.tokens.end_id or t == most - 1:
                    ids = ids_AT[a].tolist() + ([] if token == lm.tokens.end_id else [token])
                    best[b] = max(best[b], (score, ids))
                else:
                    fresh.append((a, token, score))
            going += [one for one in fresh if one[2] > best[b][0]]  # scores only fall: the others can never win
        if not going:
            break
        parent_A = torch.tensor([a for a, _, _ in going], device=device)
        token_A = torch.tensor([token for _, token, _ in going], device=device)
        score_A = torch.tensor([score for _, _, score in going], device=device)
        if len(parent_A) != len(row_A) or not torch.equal(parent_A, torch.arange(len(parent_A), device=device)):
            cache.batch_select_indices(parent_A)
        added_A1K = code.bound(lm, token_A[:, None], torch.ones_like(token_A[:, None], dtype=torch.bool), start=t)
        written_AK = written_AK[parent_A] + code.in_code_unit(added_A1K)[:, 0]
        row_A, ids_AT = row_A[parent_A], torch.cat([ids_AT[parent_A], token_A[:, None]], dim=1)
        inputs = lm.embed(token_A[:, None])
        spoken_AH = spoken_AH[parent_A] + inputs[:, 0].float()
    return best


def _by_row(row_A: Tensor, top_AW: Tensor, token_AW: Tensor) -> list[tuple[int, list[tuple[float, int, int]]]]:
    """Each text that is still being written, with its continuations (score, hypothesis, token)."""
    found: dict[int, list[tuple[float, int, int]]] = {}
    for a, (b, scores, tokens) in enumerate(zip(row_A.tolist(), top_AW.tolist(), token_AW.tolist(), strict=True)):
        found.setdefault(b, []).extend((score, a, token) for score, token in zip(scores, tokens, strict=True))
    return list(found.items())


def to_int8(codes_BK: np.ndarray) -> np.ndarray:
    """Codes as one byte a dim."""
    return np.clip(np.rint(codes_BK * (127 / BOUND)), -127, 127).astype(np.int8)


def from_int8(codes_BK: np.ndarray) -> np.ndarray:
    """What `to_int8` kept, float32."""
    return codes_BK.astype(np.float32) * (BOUND / 127)
