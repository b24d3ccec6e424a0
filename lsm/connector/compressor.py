"""Text → codes → soft tokens: states of a reader, pooled by windows, and the adapter that makes an LM's input of them.

Shape letters: C texts, T states of a text, P windows = soft tokens, F width of a state, D width of a code, H hidden width of the LM.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lsm.connector.blocks import Residual, Score, quantised, zeroed
from lsm.connector.pooling import Queries, pooled, window_softmax, windows_of_kept
from lsm.connector.readers import BYTE_WIDTH, ByteReader
from lsm.connector.settings import CompressorSettings
from lsm.lm.contexts import Read, read_preamble
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora, lora_off
from lsm.lm.soft import Soft

Pieces = Callable[[Sequence[str]], "list[tuple[Tensor, list[int]]]"]
"""Texts to each one's token states [T, F] and the characters at which its tokens begin."""
_BYTES_PER_TOKEN = 4


@dataclass
class Compressed:
    """Soft tokens and what their training needs."""

    soft: Soft
    words: list[Tensor]
    """[P, H]: the mean word embedding of each soft token's stretch of text, what alignment aims at; text tokens of a hybrid before them."""
    scores: list[Tensor]
    """[T]: of each state, where pooling has a score; what `spans` trains."""
    commitment: Tensor
    """Loss of the vector-quantised bottleneck; 0 without one."""


class Compressor(nn.Module):
    """Encoder and adapter in one: `send` is what the sender does, `receive` what the reader does."""

    def __init__(
        self, settings: CompressorSettings, lm: FrozenLM, pieces: Pieces | None, state_width: int = 0, before: Sequence[int] = ()
    ) -> None:
        """`before`: what the LM reads before each text, in its own reading as when it answers."""
        super().__init__()
        self.settings, self.lm_width, self._pieces = settings, lm.width, pieces
        self._before, self.n_tokens = list(before), len(lm.head_VH)
        self._read_before: Read | None = None
        width = {"lm": lm.width, "encoder": state_width, "bytes": BYTE_WIDTH}[settings.source]
        self.base_dim = width * (1 + len(settings.states))
        self.dim = settings.code_dim or self.base_dim
        self.reader = ByteReader() if settings.source == "bytes" else None
        self.score = Score(width, settings.score_hidden, settings.score_reach) if settings.scored else None
        self.queries = Queries(width, self.base_dim) if settings.pooling == "queries" else None
        # Where the LM reads itself, a code starts as the mean word embedding of its window, and states add to it from zero.
        self.residual = zeroed(nn.Linear(width, lm.width)) if settings.source == "lm" and settings.layer else None
        self.mlp = Residual(self.base_dim, settings.hidden, 1 + len(settings.states)) if settings.hidden else None
        self.narrow = nn.Linear(self.base_dim, self.dim) if settings.code_dim else None
        self.codebook = nn.Embedding(settings.codebook, self.dim) if settings.codebook else None
        self.adapter = nn.Linear(self.dim, lm.width) if settings.source != "lm" or settings.code_dim else None
        self.depths = nn.ModuleDict({str(layer): zeroed(nn.Linear(self.dim, lm.width)) for layer in settings.depths})
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

    def forward(self, texts: Sequence[str], lm: FrozenLM, ratio: int) -> Compressed:
        """What the LM reads in place of the texts."""
        heads, rests = self.split(texts, lm)
        codes, words, scores = self.encode(rests, lm, ratio)
        commitment = codes[0].new_zeros(())
        if self.codebook is not None:
            codes, commitment = quantised(codes, self.codebook)
        soft = self.receive(codes, heads, lm)
        if self.settings.text_tokens:
            words = [torch.cat([row[: len(row) - len(word)].detach(), word]) for row, word in zip(soft.tokens, words, strict=True)]
        return Compressed(soft, words, scores, commitment)

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
        return (codes if self.codebook is None else quantised(codes, self.codebook)[0]), heads

    def receive(self, codes: Sequence[Tensor], heads: Sequence[str], lm: FrozenLM) -> Soft:
        """Soft tokens behind what came as text, and what happens to their positions at depths."""
        inputs, deep = list(codes), {int(layer): [project(code) for code in codes] for layer, project in self.depths.items()}
        if self.settings.states:
            inputs, *states = zip(*(code.split(self.lm_width, dim=1) for code in codes), strict=True)
            deep = {layer: list(rows) for layer, rows in zip(self.settings.states, states, strict=True)}
        soft = [self._matched(code if self.adapter is None else self.adapter(code)) for code in inputs]
        if self.settings.text_tokens:
            soft = [torch.cat([head.float(), row]) for head, row in zip(lm.embed_each(lm.tokens.encode(heads)), soft, strict=True)]
        return Soft(soft, deep, replaces=bool(self.settings.states), cue=self.cue)

    def silent(self, lm: FrozenLM) -> AbstractContextManager[None]:
        """While open the LM answers without the encoder's LoRA."""
        return lora_off(lm) if self.lora else nullcontext()

    def encode(self, texts: Sequence[str], lm: FrozenLM, ratio: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of each text its codes [P, D], the mean word embedding [P, H] of each code's stretch, and scores [T] where states have them."""
        ids, starts = lm.tokens.encode(texts), lm.tokens.starts(texts)
        embedded = [row.float() for row in lm.embed_each([row or [lm.tokens.end_id] for row in ids])]
        deep: list[list[Tensor]] = [[] for _ in texts]
        if self.settings.source == "lm":
            states, deep = self._lm_states(embedded, lm, self.settings.states)
            places = starts
        elif self.settings.source == "bytes":
            assert self.reader is not None
            states, places = self.reader(texts)
            ratio *= _BYTES_PER_TOKEN
        else:
            assert self._pieces is not None, "source encoder needs one"
            found = self._pieces(texts)
            states, places = [state.to(lm.device) for state, _ in found], [place for _, place in found]
        codes, words, scores = [], [], []
        for row, state_TF in enumerate(states):
            score_T = None if self.score is None else self.scores(state_TF, ids[row])
            n_windows = max(1, -(-len(state_TF) // ratio))
            if self.settings.pooling == "kept":
                assert score_T is not None
                kept_P, window_T = windows_of_kept(score_T, n_windows)
            else:
                kept_P, window_T = None, torch.arange(len(state_TF), device=lm.device) // ratio
            first = torch.tensor(places[row][::ratio] or [0])
            own_T = torch.searchsorted(first, torch.tensor(starts[row] or [0]), right=True).clamp(min=1).to(lm.device) - 1
            words.append(pooled(embedded[row], own_T if kept_P is None else window_T, n_windows))
            codes.append(self._code(state_TF, window_T, n_windows, score_T, kept_P, [embedded[row], *deep[row]]))
            scores += [] if score_T is None else [score_T]
        return codes, words, scores

    @torch.no_grad()
    def to_score(self, text: str, lm: FrozenLM) -> tuple[Tensor, list[int]]:
        """States [T, H] of the LM's own reading of a text, and its token ids: what `scores` takes. No layer behind `layer` is read."""
        ids = lm.tokens.encode([text])[0]
        return self._lm_states([lm.embed_each([ids or [lm.tokens.end_id]])[0].float()], lm, ())[0][0], ids

    def scores(self, state_TF: Tensor, ids: Sequence[int]) -> Tensor:
        """How much each state [T] of a text is worth; `ids` are those of the LM's own tokens."""
        assert self.score is not None
        score_T = self.score(state_TF)
        if self.settings.rarity and self.settings.source == "lm":
            rank_T = torch.tensor(ids or [0], device=score_T.device).float().add(1) / self.n_tokens
            score_T = score_T + self.settings.rarity * rank_T.log()
        return score_T

    @torch.no_grad()
    def fit_words(self, texts: Sequence[str], lm: FrozenLM, ratio: int) -> None:
        """Set the adapter by ridge regression so that untrained codes already give each window's mean word embedding."""
        assert self.adapter is not None
        found = [self.encode(texts[start : start + 16], lm, ratio) for start in range(0, len(texts), 16)]
        codes_ND, words_NH = (torch.cat([row for rows in own for row in rows]).double() for own in list(zip(*found, strict=True))[:2])
        mean_D, mean_H = codes_ND.mean(0), words_NH.mean(0)
        centred_ND = codes_ND - mean_D
        gram_DD = centred_ND.T @ centred_ND
        gram_DD += torch.eye(len(gram_DD), dtype=gram_DD.dtype, device=gram_DD.device) * gram_DD.diagonal().mean() * 0.01
        weight_DH = torch.linalg.solve(gram_DD, centred_ND.T @ (words_NH - mean_H))
        self.adapter.weight.copy_(weight_DH.T)
        self.adapter.bias.copy_(mean_H - mean_D @ weight_DH)

    def _lm_states(self, embedded: Sequence[Tensor], lm: FrozenLM, depths: Sequence[int]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Of each text its states [T, H] at `layer`, normed, and those at each of `depths` as they are."""
        wanted = [self.settings.layer, *depths]
        if not any(wanted):
            return list(embedded), [[] for _ in embedded]
        padded = nn.utils.rnn.pad_sequence(list(embedded), batch_first=True)
        with nullcontext() if self.lora else torch.no_grad():
            first_CTH, *deep = (states_CTH.float() for states_CTH in lm.hidden_at(padded, wanted, self._cache(lm, len(embedded))))
        if self.settings.layer:  # some entries of a residual stream are a thousand times the others
            first_CTH = nn.functional.layer_norm(first_CTH.clamp(-50, 50), first_CTH.shape[-1:])
        deep_of = [[states[row, : len(own)] for states in deep] for row, own in enumerate(embedded)]
        return [states_TH[: len(own)] for states_TH, own in zip(first_CTH, embedded, strict=True)], deep_of

    def _cache(self, lm: FrozenLM, n_rows: int) -> Any:
        """What the LM keeps of `before`, for so many rows, without gradient; read once as long as no LoRA layer changes it."""
        if self._read_before is None or self.lora:
            self._read_before = read_preamble(lm, self._before)
        cache = copy.deepcopy(self._read_before.cache)
        if cache is not None:
            cache.batch_repeat_interleave(n_rows)
        return cache

    def _code(
        self, state_TF: Tensor, window_T: Tensor, n_windows: int, score_T: Tensor | None, kept_P: Tensor | None, own: Sequence[Tensor]
    ) -> Tensor:
        """Codes [P, D] of one text; `own`: its word embeddings and deeper states [T, H], of which the LM's own codes are made."""
        weight_T = None if score_T is None else window_softmax(score_T, window_T, n_windows)
        if kept_P is not None:  # the kept token alone; the score has the gradient of the softmax (straight through)
            assert weight_T is not None
            weight_T = torch.zeros_like(weight_T).index_fill(0, kept_P, 1.0) + weight_T - weight_T.detach()
        if self.queries is not None:
            code = self.queries(state_TF, n_windows)
        elif self.settings.source == "lm":
            code = pooled(torch.cat(list(own), dim=1), window_T, n_windows, weight_T)
            if self.residual is not None:
                more_PH = self.rms * self.residual(pooled(state_TF, window_T, n_windows, weight_T if kept_P is None else None))
                code = code + nn.functional.pad(more_PH, (0, code.shape[1] - more_PH.shape[1]))
        else:
            code = pooled(state_TF, window_T, n_windows, weight_T)
        if self.mlp is not None:
            code = self.mlp(code)
        return code if self.narrow is None else self.narrow(code)

    def _matched(self, soft_PH: Tensor) -> Tensor:
        if self.settings.match == "rms":
            return soft_PH * (self.rms / soft_PH.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-6))
        if self.settings.match == "distribution":
            return nn.functional.layer_norm(soft_PH, soft_PH.shape[-1:]) * self.word_std_H + self.word_mean_H
        return soft_PH
