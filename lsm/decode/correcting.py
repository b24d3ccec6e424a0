"""Correction steps: hypotheses are re-encoded, a trained corrector writes better ones from them, the best are kept, within one budget.

After vec2text's inference (Morris et al. 2023, §4): several steps, and a beam of sequences over them. Unlike there, the best hypothesis of
all steps is what comes back, and a target is left when two steps in a row bring nothing better.
Shape letters: B targets, D vector width, R rows (a target and one of its hypotheses), P prefix positions.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm.decode.budget import EncoderBudget, Hypothesis
from lsm.decode.corrector import Corrector
from lsm.decode.decoders import Decoder
from lsm.decode.vectors import Encode, check_vectors
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM, same_lm
from lsm.lm.generation import Sampling, row_seed
from lsm.lm.lora import attach_lora, detach_lora, has_lora

_ROWS_AT_ONCE = 64
_PATIENCE = 2
"""Steps in a row without a better hypothesis after which a target is left."""


class Writer:
    """A corrector and the LM, which carries the corrector's LoRA layers, writing one text for each (target, hypothesis)."""

    def __init__(self, lm: FrozenLM, corrector: Corrector) -> None:
        self.lm, self.corrector = lm, corrector
        # Years and sums repeat runs of digits: repetition is not held down.
        self.sampling = Sampling(no_repeat_tokens=0, max_new_tokens=corrector.sentence_tokens)

    @classmethod
    def of(cls, lm: FrozenLM, corrector: Corrector) -> Writer:
        """Put a trained corrector's LoRA layers into `lm`, which is then good for nothing else.

        Raises:
            UserError: the corrector was trained with another LM.
        """
        home = corrector.home.lm
        if not same_lm(home, lm):
            raise UserError(
                f"the corrector speaks through LM {home.get('name')} (sha256 {home.get('sha256', '')[:12]}), not {lm.name} "
                f"(sha256 {lm.sha256[:12]}); load that LM or train a corrector for this one"
            )
        if has_lora(lm):
            detach_lora(lm)
        if corrector.lora_rank:
            attach_lora(lm, corrector.lora_rank).load_state_dict(corrector.lora.state_dict())
        return cls(lm, corrector.to(lm.device).eval())

    @torch.no_grad()
    def write(self, z_RD: np.ndarray, own_RD: np.ndarray, texts: Sequence[str], *, temperature: float = 0.0, seed: int = 0) -> list[str]:
        """A better text for each row, whatever it stands beside.

        Args:
            z_RD: targets.
            own_RD: vectors of the hypotheses.
            texts: the hypotheses.
            temperature: 0 takes the most probable token.
        """
        ids = [self.corrector.in_slots(row, self.lm.tokens.end_id) for row in self.lm.tokens.encode(texts)]
        by_slots: dict[int, list[int]] = defaultdict(list)
        for row, tokens in enumerate(ids):
            by_slots[len(tokens)].append(row)
        sampling = dataclasses.replace(self.sampling, temperature=temperature, top_p=0.95 if temperature else 1.0)
        seeds = [row_seed(seed, z_D.tobytes(), text.encode()) for z_D, text in zip(z_RD, texts, strict=True)]
        out = [""] * len(texts)
        for _, rows in sorted(by_slots.items()):
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                some = rows[start : start + _ROWS_AT_ONCE]
                device = self.lm.device
                z_BD, own_BD = (torch.from_numpy(np.ascontiguousarray(x[some], dtype=np.float32)).to(device) for x in (z_RD, own_RD))
                trunks_B3F = self.corrector.trunks(z_BD, own_BD)
                inputs_BLH = self.corrector.inputs(trunks_B3F, torch.tensor([ids[n] for n in some], device=device), self.lm)
                written = self.lm.generate(inputs_BLH, sampling, bias=self._bias(trunks_B3F[:, 0]), seeds_B=[seeds[n] for n in some])
                for row, text in zip(some, written, strict=True):
                    out[row] = text
        return out

    def _bias(self, trunk_BF: Tensor) -> Any:
        def bias(spoken_AH: Tensor, n_tokens: int, rows_A: Tensor) -> Tensor | None:
            n_tokens_T = torch.tensor([n_tokens], device=spoken_AH.device)
            lift_A1H = self.corrector.adapter.bias(trunk_BF[rows_A], spoken_AH[:, None], n_tokens_T)
            return None if lift_A1H is None else lift_A1H[:, 0]

        return bias


class CorrectorDecoder:
    """First hypotheses of another decoder, then steps of correction, each hypothesis judged by re-encoding it."""

    name = "corrector"

    def __init__(
        self, writer: Writer, first: Decoder, encode: Encode, *, encoder_calls: int = 64, beam: int = 4, samples: int = 2, steps: int = 50
    ) -> None:
        """
        Args:
            first: gives the hypotheses to begin with.
            encoder_calls: most texts encoded for one vector.
            beam: hypotheses that are corrected in each step, the nearest so far.
            samples: texts written from each: the most probable, and samples at temperature 0.7.
        """
        if encoder_calls < 1:
            raise UserError(f"--encoder-calls {encoder_calls}: must be at least 1")
        assert beam >= 1 and samples >= 1
        self.writer, self.first, self.encode, self.limit = writer, first, encode, encoder_calls
        self.beam, self.samples, self.steps = beam, samples, steps
        self.encoder = writer.corrector.home.encoder
        self.encoder_calls_per_sentence = float(encoder_calls)
        self.trails: list[list[tuple[int, str]]] = []
        """Of each vector of the last call: encoder calls used and best text so far, after every step."""

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        return [texts[0] for texts in self.candidates(z_BD, 1, seed=seed)]

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        """The nearest hypothesis of all steps, then the next nearest."""
        check_vectors(z_BD, self.writer.corrector.home.dim, self.encoder)
        budget = EncoderBudget(self.encode, z_BD, self.limit)
        n_targets = len(z_BD)
        budget.try_texts(self.first.candidates(z_BD, self.beam, seed=seed))
        self.trails = [[(0, "")] for _ in range(n_targets)]
        best_B = np.array([self._note(budget, n) for n in range(n_targets)])
        stale_B = np.zeros(n_targets, dtype=np.int64)
        for step in range(self.steps):
            active = [n for n in range(n_targets) if budget.left(n) and stale_B[n] < _PATIENCE]
            if not active:
                break
            for n, tried in zip(range(n_targets), budget.try_texts(self._proposals(budget, active, step, seed)), strict=True):
                if n in active:
                    now = self._note(budget, n) if tried else best_B[n]
                    stale_B[n] = 0 if now > best_B[n] + 1e-4 else stale_B[n] + 1
                    best_B[n] = now
        self.encoder_calls_per_sentence = float(budget.used_B.mean()) if n_targets else 0.0
        return [[one.text for one in budget.nearest(n)][:k] or [""] for n in range(n_targets)]

    def _proposals(self, budget: EncoderBudget, active: Sequence[int], step: int, seed: int) -> list[list[str]]:
        """What the corrector makes of each active target's nearest hypotheses; the nearest one's first."""
        nothing = Hypothesis("", -1.0, np.zeros(budget.target_BD.shape[1], np.float32))  # where the first decoder wrote nothing
        rows = [(n, one) for n in active for one in budget.nearest(n)[: self.beam] or [nothing]]
        z_RD = np.stack([budget.target_BD[n] for n, _ in rows])
        own_RD = np.stack([one.z_D for _, one in rows])
        texts = [one.text for _, one in rows]
        proposals: list[list[str]] = [[] for _ in budget.target_BD]
        for sample in range(self.samples):
            temperature = 0.7 if sample else 0.0
            written = self.writer.write(z_RD, own_RD, texts, temperature=temperature, seed=seed + 1000 * step + sample)
            for (n, _), text in zip(rows, written, strict=True):
                proposals[n].append(text)
        return proposals

    def _note(self, budget: EncoderBudget, n: int) -> float:
        """The best cosine of target n, which is added to its trail."""
        nearest = budget.nearest(n)
        if not nearest:
            return -1.0
        self.trails[n].append((int(budget.used_B[n]), nearest[0].text))
        return nearest[0].cosine
