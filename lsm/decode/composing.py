"""Writing with the frozen LM towards a vector: a beam search whose words are drawn to the target by a linear guess of the encoder.

No encoder call is spent on unfinished sentences: what a beam holds is scored by the LM's log-probability plus `strength` times the cosine
between the target and the sum of its words' vectors (`lsm.decode.lexicon`). The idea of a cosine-steered beam is that of Zhang et al. 2025
(universal zero-shot embedding inversion), who re-encode every beam at every token.
Shape letters: B targets, K beams, R = B·K rows, P prefix positions, H hidden width, D vector width, V vocabulary, W words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lsm.decode.lexicon import CONTENT_WEIGHT
from lsm.lm.generation import Bias, repeating

if TYPE_CHECKING:
    from lsm.decode.lexicon import Lexicon
    from lsm.lm.frozen import FrozenLM

_FEWEST_TOKENS = 5
_FINISHED = 3
"""So many times the wanted number of sentences end before a target is left."""
_CREDIT = 2.0
"""Nats that a token of a finished sentence is forgiven: without it the shortest would be the best."""
_REPEATED = 3


class Composer:
    """An LM with a lexicon that writes sentences for vectors."""

    def __init__(self, lm: FrozenLM, lexicon: Lexicon) -> None:
        self.lm, self.lexicon = lm, lexicon
        n_vocabulary = len(lm.head_VH)
        texts = [lm.tokens.decode([token]) for token in range(n_vocabulary)]
        self._enders = {token for token, text in enumerate(texts) if text.strip() in (".", "?", "!", '."', ".”")}
        self._initials = {token for token, text in enumerate(texts) if len(text.strip()) == 1 and text.strip().isupper()}
        self._banned_V = torch.tensor(["\n" in text or token == lm.tokens.end_id for token, text in enumerate(texts)], device=lm.device)
        self._inside, self._opening = (_Words(tokens_W, n_vocabulary, lm.device) for tokens_W in (lexicon.token_W, lexicon.opening_W))
        self._z_WD = torch.from_numpy(lexicon.z_WD).to(lm.device)
        self._content_W = lexicon.weight_W > CONTENT_WEIGHT

    @torch.inference_mode()
    def compose(
        self,
        target_BD: np.ndarray,
        inputs_BPH: Tensor,
        *,
        strength: float,
        width: int,
        bias: Bias | None = None,
        max_tokens: int = 48,
    ) -> list[list[str]]:
        """At most `width` sentences for each target, best first.

        Args:
            target_BD: what the sum of the words should point at.
            inputs_BPH: what the LM reads first: embedded tokens or a soft prefix.
            strength: nats that a cosine of 1 is worth.
            bias: as in `lsm.lm.generation.generate_ids`; its rows are targets.
        """
        lm = self.lm
        target = torch.from_numpy(target_BD).to(lm.device)
        pull_BW = target @ self._z_WD.T
        square_W = self._z_WD.square().sum(1)
        n_targets = len(target_BD)
        finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(n_targets)]
        owner_R = torch.arange(n_targets, device=lm.device)
        rows: list[list[int]] = [[] for _ in range(n_targets)]
        said: list[frozenset[int]] = [frozenset()] * n_targets
        sum_RD, total_R, cosine_R = torch.zeros_like(target), torch.zeros(n_targets), torch.zeros(n_targets, device=lm.device)
        spoken_RH = torch.zeros(n_targets, lm.width, device=lm.device)
        inputs, cache = inputs_BPH, None
        for n_tokens in range(max_tokens):
            logits_RV, cache = lm.step(inputs, cache, bias(spoken_RH, n_tokens, owner_R) if bias else None)
            log_RV = torch.log_softmax(logits_RV, dim=-1).masked_fill_(self._banned_V, -torch.inf)
            words = self._inside if n_tokens else self._opening
            square_R = sum_RD.square().sum(1)
            grown_RW = square_R[:, None] + 2 * sum_RD @ self._z_WD.T + square_W
            cosine_RW = ((sum_RD * target[owner_R]).sum(1)[:, None] + pull_BW[owner_R]) / grown_RW.clamp_min(1e-6).sqrt()
            log_RV[:, words.token_N] += strength * (cosine_RW - cosine_R[:, None])[:, words.word_N]
            for row, (ids, spoken) in enumerate(zip(rows, said, strict=True)):
                if spoken:
                    log_RV[row, [token for word in spoken for token in words.tokens_of(word)]] = -torch.inf
                log_RV[row, repeating(ids, _REPEATED)] = -torch.inf
            best_RK, token_RK = log_RV.topk(min(2 * width, log_RV.shape[1]), dim=1)
            chosen = self._choose(total_R, best_RK, token_RK, owner_R, rows, finished, width)
            if not chosen or n_tokens == max_tokens - 1:
                break
            source_R = torch.tensor([row for row, _, _ in chosen], device=lm.device)
            tokens = [token for _, token, _ in chosen]
            total_R = torch.tensor([total for _, _, total in chosen])
            added = [words.word_of(token) for token in tokens]
            owner_R, spoken_RH, sum_RD = owner_R[source_R], spoken_RH[source_R], sum_RD[source_R]
            for row, word in enumerate(added):
                if word >= 0:
                    sum_RD[row] += self._z_WD[word]
            said = [
                said[row] | {word} if word >= 0 and self._content_W[word] else said[row]
                for row, word in zip(source_R.tolist(), added, strict=True)
            ]
            rows = [[*rows[row], token] for row, token in zip(source_R.tolist(), tokens, strict=True)]
            cosine_R = (sum_RD * target[owner_R]).sum(1) / sum_RD.norm(dim=1).clamp_min(1e-6)
            cache.batch_select_indices(source_R)
            inputs = lm.embed(torch.tensor(tokens, device=lm.device)[:, None])
            spoken_RH = spoken_RH + inputs[:, 0].float()
        for row, owner in enumerate(owner_R.tolist()):
            if not finished[owner]:
                finished[owner].append((float(total_R[row]), rows[row]))
        ranked = [sorted(some, key=lambda scored: -scored[0] - _CREDIT * len(scored[1]))[:width] for some in finished]
        return [list(dict.fromkeys(lm.tokens.decode(ids).strip() for _, ids in some)) for some in ranked]

    def _choose(
        self,
        total_R: Tensor,
        best_RK: Tensor,
        token_RK: Tensor,
        owner_R: Tensor,
        rows: list[list[int]],
        finished: list[list[tuple[float, list[int]]]],
        width: int,
    ) -> list[tuple[int, int, float]]:
        """The next beams as (row, token, total); sentences that end go to `finished`, and a target with enough of them is left out."""
        offers: dict[int, list[tuple[float, int, int]]] = {}
        totals = (total_R[:, None] + best_RK.cpu()).tolist()
        for row, (owner, values, tokens) in enumerate(zip(owner_R.tolist(), totals, token_RK.tolist(), strict=True)):
            offers.setdefault(owner, []).extend((value, row, token) for value, token in zip(values, tokens, strict=True))
        chosen = []
        for owner, some in offers.items():
            some.sort(key=lambda offer: -offer[0])
            kept: list[tuple[int, int, float]] = []
            for value, row, token in some:
                if value == -float("inf") or len(kept) == width:
                    break
                if token in self._enders and len(rows[row]) >= _FEWEST_TOKENS and rows[row][-1] not in self._initials:
                    finished[owner].append((value, [*rows[row], token]))
                else:
                    kept.append((row, token, value))
            if len(finished[owner]) < _FINISHED * width:
                chosen += kept
        return chosen


class _Words:
    """Which token is which word."""

    def __init__(self, tokens_W: np.ndarray, n_vocabulary: int, device: torch.device) -> None:
        there = np.flatnonzero(tokens_W >= 0)
        self.token_N, self.word_N = torch.from_numpy(tokens_W[there]).to(device), torch.from_numpy(there).to(device)
        self._word = dict(zip(tokens_W[there].tolist(), there.tolist(), strict=True))
        self._token = tokens_W.tolist()

    def word_of(self, token: int) -> int:
        return self._word.get(token, -1)

    def tokens_of(self, word: int) -> list[int]:
        return [self._token[word]] if self._token[word] >= 0 else []
