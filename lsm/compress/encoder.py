"""Text → codes → soft tokens: states of a reader, pooled by windows, and the adapter that makes an LM's input of them.

Shape letters: C texts, T states of a text, P windows = soft tokens, F width of a state, D width of a code, H hidden width of the LM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lsm.compress.settings import EncoderSettings
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora

Pieces = Callable[[Sequence[str]], "list[tuple[Tensor, list[int]]]"]
"""Texts to each one's token states [T, F] and the characters at which its tokens begin."""
_BYTES_PER_TOKEN = 4
_BYTE_WIDTH = 128
_QUERY_HEADS = 4
_PLACES = 1024


@dataclass
class Soft:
    """Compressed texts, each a row of the lists."""

    tokens: list[Tensor]
    """[P, H]: text tokens of a hybrid, soft tokens."""
    deltas: dict[int, list[Tensor]]
    """For each injected depth what is added to the residual stream at those positions, [P, H]."""
    words: list[Tensor]
    """[P, H]: the mean word embedding of each position's stretch of text, what alignment aims at."""
    commitment: Tensor
    """Loss of the vector-quantised bottleneck; 0 without one."""


class Compressor(nn.Module):
    """Encoder and adapter in one: `send` is what the sender does, `receive` what the reader does."""

    def __init__(self, settings: EncoderSettings, lm: FrozenLM, pieces: Pieces | None, state_width: int = 0) -> None:
        super().__init__()
        self.settings, self.lm_width, self._pieces = settings, lm.width, pieces
        width = {"lm": lm.width, "encoder": state_width, "bytes": _BYTE_WIDTH}[settings.source]
        self.base_dim = lm.width if settings.source == "lm" else width
        self.dim = settings.code_dim or self.base_dim
        self.reader = _ByteReader() if settings.source == "bytes" else None
        self.score = nn.Linear(width, 1) if settings.pooling == "weighted" else None
        if self.score is not None:
            nn.init.zeros_(self.score.weight)
        self.queries = _Queries(width, self.base_dim) if settings.pooling == "queries" else None
        # Where the LM reads itself, a code starts as the mean word embedding of its window, and states add to it from zero.
        self.residual = _zeroed(nn.Linear(width, self.base_dim)) if settings.source == "lm" and settings.layer else None
        self.mlp = _Residual(self.base_dim, settings.hidden) if settings.hidden else None
        self.narrow = nn.Linear(self.base_dim, self.dim) if settings.code_dim else None
        self.codebook = nn.Embedding(settings.codebook, self.dim) if settings.codebook else None
        self.adapter = nn.Linear(self.dim, lm.width) if settings.source != "lm" or settings.code_dim else None
        self.depths = nn.ModuleDict({str(layer): _zeroed(nn.Linear(self.dim, lm.width)) for layer in settings.depths})
        rms = lm.embedding_rms()
        self.cue = nn.Parameter(torch.randn(settings.cue, lm.width) * rms) if settings.cue else None
        if self.adapter is not None:  # untrained soft tokens have the size of words where codes have entries of size 1
            nn.init.normal_(self.adapter.weight, std=rms / math.sqrt(self.dim))
            nn.init.zeros_(self.adapter.bias)
        self.lora = nn.ParameterDict()
        if settings.lora_rank:
            self.lora = attach_lora(lm, settings.lora_rank)
        embedding = lm.embed(torch.arange(0, len(lm.head_VH), max(1, len(lm.head_VH) // 4096), device=lm.device)).float()
        self.word_mean_H: Tensor
        self.word_std_H: Tensor
        self.register_buffer("word_mean_H", embedding.mean(0), persistent=False)
        self.register_buffer("word_std_H", embedding.std(0), persistent=False)
        self.rms = rms

    def forward(self, texts: Sequence[str], lm: FrozenLM, ratio: int) -> Soft:
        """What the LM reads in place of the texts."""
        heads, rests = self.split(texts, lm)
        codes, words = self.encode(rests, lm, ratio)
        commitment = codes[0].new_zeros(())
        if self.codebook is not None:
            codes, commitment = _quantised(codes, self.codebook)
        soft, deltas = self.receive(codes, heads, lm)
        if self.settings.text_tokens:
            words = [torch.cat([row[: len(row) - len(word)].detach(), word]) for row, word in zip(soft, words, strict=True)]
        return Soft(soft, deltas, words, commitment)

    def split(self, texts: Sequence[str], lm: FrozenLM) -> tuple[list[str], list[str]]:
        """What of each text goes as text (a hybrid's first tokens), and the rest."""
        kept = self.settings.text_tokens
        cuts = [
            (row[kept] if kept < len(row) else len(text)) if kept else 0 for row, text in zip(lm.tokens.starts(texts), texts, strict=True)
        ]
        return [text[:cut] for text, cut in zip(texts, cuts, strict=True)], [text[cut:] for text, cut in zip(texts, cuts, strict=True)]

    @torch.no_grad()
    def send(self, texts: Sequence[str], lm: FrozenLM, ratio: int) -> tuple[list[Tensor], list[str]]:
        """Codes [P, D] and texts' beginnings, all that a reader needs."""
        heads, rests = self.split(texts, lm)
        codes = self.encode(rests, lm, ratio)[0]
        return (codes if self.codebook is None else _quantised(codes, self.codebook)[0]), heads

    def receive(self, codes: Sequence[Tensor], heads: Sequence[str], lm: FrozenLM) -> tuple[list[Tensor], dict[int, list[Tensor]]]:
        """Soft tokens [P, H] behind what came as text, and what is added to them at depths."""
        soft = [self._matched(code if self.adapter is None else self.adapter(code)) for code in codes]
        deltas = {int(layer): [project(code) for code in codes] for layer, project in self.depths.items()}
        if self.settings.text_tokens:
            before = [lm.embed(torch.tensor([row], dtype=torch.int64, device=lm.device))[0].float() for row in lm.tokens.encode(heads)]
            deltas = {
                layer: [nn.functional.pad(row, (0, 0, len(head), 0)) for head, row in zip(before, rows, strict=True)]
                for layer, rows in deltas.items()
            }
            soft = [torch.cat(pair) for pair in zip(before, soft, strict=True)]
        return soft, deltas

    def encode(self, texts: Sequence[str], lm: FrozenLM, ratio: int) -> tuple[list[Tensor], list[Tensor]]:
        """Codes [P, D] of each text, and the mean word embedding [P, H] of each window."""
        ids, starts = lm.tokens.encode(texts), lm.tokens.starts(texts)
        embedded = [lm.embed(torch.tensor([row or [lm.tokens.end_id]], device=lm.device))[0].float() for row in ids]
        if self.settings.source == "lm":
            states, places = self._lm_states(embedded, lm), starts
        elif self.settings.source == "bytes":
            assert self.reader is not None
            states, places = self.reader(texts)
            ratio *= _BYTES_PER_TOKEN
        else:
            assert self._pieces is not None, "source encoder needs one"
            found = self._pieces(texts)
            states, places = [state.to(lm.device) for state, _ in found], [place for _, place in found]
        codes, words = [], []
        for row, state_TF in enumerate(states):
            window_T = torch.arange(len(state_TF), device=lm.device) // ratio
            first = torch.tensor(places[row][::ratio] or [0])
            own_T = torch.searchsorted(first, torch.tensor(starts[row] or [0]), right=True).clamp(min=1).to(lm.device) - 1
            words_PH = _pooled(embedded[row], own_T, len(first))
            words.append(words_PH)
            codes.append(self._code(state_TF, window_T, len(first), embedded[row], ids[row]))
        return codes, words

    @torch.no_grad()
    def fit_words(self, texts: Sequence[str], lm: FrozenLM, ratio: int) -> None:
        """Set the adapter by ridge regression so that untrained codes already give each window's mean word embedding."""
        assert self.adapter is not None
        pairs = [self.encode(texts[start : start + 16], lm, ratio) for start in range(0, len(texts), 16)]
        codes_ND = torch.cat([code for codes, _ in pairs for code in codes]).double()
        words_NH = torch.cat([word for _, words in pairs for word in words]).double()
        mean_D, mean_H = codes_ND.mean(0), words_NH.mean(0)
        centred_ND = codes_ND - mean_D
        gram_DD = centred_ND.T @ centred_ND
        gram_DD += torch.eye(len(gram_DD), dtype=gram_DD.dtype, device=gram_DD.device) * gram_DD.diagonal().mean() * 0.01
        weight_DH = torch.linalg.solve(gram_DD, centred_ND.T @ (words_NH - mean_H))
        self.adapter.weight.copy_(weight_DH.T)
        self.adapter.bias.copy_(mean_H - mean_D @ weight_DH)

    def _lm_states(self, embedded: Sequence[Tensor], lm: FrozenLM) -> list[Tensor]:
        if not self.settings.layer:
            return list(embedded)
        padded = nn.utils.rnn.pad_sequence(list(embedded), batch_first=True)
        if self.lora:
            hidden_CTH = lm.hidden(padded, self.settings.layer)
        else:
            with torch.no_grad():
                hidden_CTH = lm.hidden(padded, self.settings.layer)
        # Some entries of a residual stream are a thousand times the others.
        normed_CTH = nn.functional.layer_norm(hidden_CTH.float().clamp(-50, 50), hidden_CTH.shape[-1:])
        return [normed_CTH[row, : len(rows)] for row, rows in enumerate(embedded)]

    def _code(self, state_TF: Tensor, window_T: Tensor, n_windows: int, embedded_TH: Tensor, ids: Sequence[int]) -> Tensor:
        weight_T = None
        if self.score is not None:
            logit_T = self.score(state_TF)[:, 0]
            if self.settings.rarity and self.settings.source == "lm":
                logit_T = logit_T + self.settings.rarity * torch.tensor(ids or [0], device=logit_T.device).float().add(1).log()
            weight_T = _window_softmax(logit_T, window_T, n_windows)
        if self.queries is not None:
            code = self.queries(state_TF, n_windows)
        elif self.settings.source == "lm":
            code = _pooled(embedded_TH, window_T, n_windows, weight_T)
            if self.residual is not None:
                code = code + self.rms * self.residual(_pooled(state_TF, window_T, n_windows, weight_T))
        else:
            code = _pooled(state_TF, window_T, n_windows, weight_T)
        if self.mlp is not None:
            code = self.mlp(code)
        return code if self.narrow is None else self.narrow(code)

    def _matched(self, soft_PH: Tensor) -> Tensor:
        if self.settings.match == "rms":
            return soft_PH * (self.rms / soft_PH.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-6))
        if self.settings.match == "distribution":
            return nn.functional.layer_norm(soft_PH, soft_PH.shape[-1:]) * self.word_std_H + self.word_mean_H
        return soft_PH


class _ByteReader(nn.Module):
    """UTF-8 bytes → states [T, F]: embeddings, sinusoids of place and two transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, _BYTE_WIDTH)
        layer = nn.TransformerEncoderLayer(_BYTE_WIDTH, 4, 2 * _BYTE_WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, texts: Sequence[str]) -> tuple[list[Tensor], list[list[int]]]:
        device = self.embedding.weight.device
        rows = [list(text.encode("utf-8", errors="replace")) or [0] for text in texts]
        places = [[i for i, letter in enumerate(text) for _ in letter.encode("utf-8", errors="replace")] or [0] for text in texts]
        padded = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        inside = torch.arange(padded.shape[1], device=device) < torch.tensor([[len(row)] for row in rows], device=device)
        states_CTF = self.layers(self.embedding(padded) + _sinusoids(padded.shape[1], _BYTE_WIDTH, device), src_key_padding_mask=~inside)
        return [states_CTF[row, : len(ids)] for row, ids in enumerate(rows)], places


class _Queries(nn.Module):
    """Cross-attention: as many queries as soft tokens, told apart by where in the text they stand (Flamingo's resampler, one layer)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.query, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, _QUERY_HEADS, batch_first=True)
        self.out = nn.Linear(width, dim)

    def at(self, n_windows: int) -> Tensor:
        """The queries [P, F] for so many soft tokens."""
        return self.query(_sinusoids(_PLACES, self.query.in_features, self.query.weight.device)[_centres(n_windows)])

    def forward(self, state_TF: Tensor, n_windows: int) -> Tensor:
        place_TF = _sinusoids(_PLACES, state_TF.shape[1], state_TF.device)[_centres(len(state_TF))]
        query_PF = self.at(n_windows)
        keys_TF = self.norm(state_TF) + place_TF
        return self.out(self.attend(query_PF[None], keys_TF[None], keys_TF[None], need_weights=False)[0][0])


class _Residual(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), _zeroed(nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def _centres(n: int) -> Tensor:
    """Places of n things spread evenly over a text, on a scale of `_PLACES`."""
    return ((torch.arange(n) + 0.5) * _PLACES / n).long()


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]


def _pooled(state_TF: Tensor, window_T: Tensor, n_windows: int, weight_T: Tensor | None = None) -> Tensor:
    """Means [P, F] of windows, or sums with weights that already add up to 1; a window without states gives zeros."""
    sums_PF = state_TF.new_zeros(n_windows, state_TF.shape[1])
    if weight_T is not None:
        return sums_PF.index_add(0, window_T, state_TF * weight_T[:, None])
    return sums_PF.index_add(0, window_T, state_TF) / torch.bincount(window_T, minlength=n_windows).clamp(min=1)[:, None]


def _window_softmax(logit_T: Tensor, window_T: Tensor, n_windows: int) -> Tensor:
    """Softmax within each window; from its own maximum, so that a window far below the text's highest score keeps its weights."""
    top_P = logit_T.new_full((n_windows,), -torch.inf).scatter_reduce(0, window_T, logit_T.detach(), "amax")
    power_T = torch.exp(logit_T - top_P[window_T])
    return power_T / logit_T.new_zeros(n_windows).index_add(0, window_T, power_T)[window_T]


def _quantised(codes: Sequence[Tensor], codebook: nn.Embedding) -> tuple[list[Tensor], Tensor]:
    """Nearest entries, gradients straight through, and codebook plus commitment loss (weights 1 and 0.25)."""
    flat_ND = torch.cat(list(codes))
    nearest_ND = codebook(torch.cdist(flat_ND.detach(), codebook.weight.detach()).argmin(1))
    loss = (nearest_ND - flat_ND.detach()).pow(2).mean() + 0.25 * (nearest_ND.detach() - flat_ND).pow(2).mean()
    through_ND = flat_ND + (nearest_ND - flat_ND).detach()
    return list(through_ND.split([len(code) for code in codes])), loss
