"""Vectors to text, three ways behind one verb: the nearest real sentence, a prefix-adapted LM, or the best of several tries.

Shape letters: B vectors, D vector width, K candidates, F trunk width, H hidden width of the LM, A rows still being written, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lsm.corpus.format import require_same_space
from lsm.decode.adapter import PrefixAdapter
from lsm.decode.phrase_store import PhraseStore
from lsm.decode.vectors import check_vectors
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM, same_lm
from lsm.lm.generation import Beside, Bias, Sampling, row_seed
from lsm.lm.lora import attach_lora, detach_lora, has_lora

_ROWS_AT_ONCE = 256
WARM, _TOP_P = 0.7, 0.95
"""Temperature at which words are drawn where a vector is to be said in more than one way, and the share of probability drawn from."""


class Decoder(Protocol):
    """Something that words sentence vectors."""

    name: str
    encoder: dict[str, Any]
    """Fingerprint of the encoder whose vectors it reads."""
    encoder_calls_per_sentence: float
    """Sentences re-encoded for one vector."""

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        """One sentence for each vector; only directions count. Same vectors and seed, same texts."""
        ...

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        """For each vector k different attempts or fewer, the first as good as any: what `decode` may choose from."""
        ...


class RetrievalDecoder:
    """The nearest sentence of a phrase store: fluent and true to some document, never new."""

    name = "retrieval"
    encoder_calls_per_sentence = 0.0

    def __init__(self, store: PhraseStore) -> None:
        self.store, self.encoder = store, store.encoder

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        return [texts[0] for texts in self.candidates(z_BD, 1, seed=seed)]

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        check_vectors(z_BD, self.store.dim, self.encoder)
        _, rows_BK = self.store.search(z_BD, k)
        return [self.store.texts([row for row in rows if row >= 0]) for rows in rows_BK.tolist()]


class PrefixDecoder:
    """A frozen LM that reads the vector as a soft prefix and writes greedily, all vectors in batches."""

    name = "prefix"
    encoder_calls_per_sentence = 0.0

    def __init__(self, lm: FrozenLM, adapter: PrefixAdapter, *, sampling: Sampling | None = None) -> None:
        """Raises `UserError` when the adapter was trained with another LM."""
        if not same_lm(adapter.home.lm, lm):
            raise UserError(
                f"the adapter speaks through LM {adapter.home.lm.get('name')} (sha256 {adapter.home.lm.get('sha256', '')[:12]}), "
                f"not {lm.name} (sha256 {lm.sha256[:12]}); load that LM or train an adapter for this one"
            )
        self.lm, self.adapter, self.encoder = lm, adapter.to(lm.device).eval(), adapter.home.encoder
        self.sampling = sampling or Sampling(presence_penalty=0.5)
        if adapter.settings.lora_rank:
            if has_lora(lm):
                detach_lora(lm)
            placed = attach_lora(lm, adapter.settings.lora_rank)
            placed.load_state_dict(adapter.lora.state_dict())

    def drawing(self, temperature: float) -> PrefixDecoder:
        """The same decoder with words drawn at `temperature` from the likeliest 95 %; 0 takes the most probable ones."""
        sampling = dataclasses.replace(self.sampling, temperature=temperature, top_p=_TOP_P)
        return PrefixDecoder(self.lm, self.adapter, sampling=sampling)

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        return self._write(z_BD, self.sampling, seed)

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        """The sentence of `decode` first, then draws at a temperature of 0.7 or more."""
        warm = dataclasses.replace(self.sampling, temperature=max(WARM, self.sampling.temperature), top_p=_TOP_P)
        first = self._write(z_BD, self.sampling, seed)
        drawn = self._write(np.repeat(z_BD, k - 1, axis=0), warm, seed, samples=k - 1) if k > 1 else []
        return [list(dict.fromkeys([text, *drawn[n * (k - 1) : (n + 1) * (k - 1)]])) for n, text in enumerate(first)]

    @torch.inference_mode()
    def conditions(self, z_BD: np.ndarray) -> tuple[Tensor, Bias]:
        """Soft prefixes [B, P, H] for vectors, and the lexical lift that goes with them."""
        trunk_BF = self.adapter.trunk(torch.from_numpy(np.ascontiguousarray(z_BD)).to(self.lm.device))

        def bias(spoken_AH: Tensor, n_tokens: int, rows_A: Tensor) -> Tensor | None:
            n_tokens_T = torch.tensor([n_tokens], device=spoken_AH.device)
            lift_ATH = self.adapter.bias(trunk_BF[rows_A], spoken_AH[:, None], n_tokens_T)
            return None if lift_ATH is None else lift_ATH[:, 0]

        return self.adapter.prefix(trunk_BF, self.lm).prefix_BPH, bias

    def evidence(self, z_BD: np.ndarray) -> tuple[Beside | None, Tensor | None]:
        """What bears on the words beside the vectors (see `generate_ids`): nothing here."""
        return None, None

    @torch.inference_mode()
    def _write(self, z_BD: np.ndarray, sampling: Sampling, seed: int, *, samples: int = 1) -> list[str]:
        """One text for each row; `samples` equal rows stand one after the other, and draw differently."""
        check_vectors(z_BD, self.adapter.home.dim, self.encoder)
        seeds = [row_seed(seed, z_D.tobytes(), str(row % samples).encode()) for row, z_D in enumerate(z_BD)]
        texts: list[str] = []
        for start in range(0, len(z_BD), _ROWS_AT_ONCE):
            prefix_BPH, bias = self.conditions(z_BD[start : start + _ROWS_AT_ONCE])
            beside, lift_BV = self.evidence(z_BD[start : start + _ROWS_AT_ONCE])
            own = seeds[start : start + _ROWS_AT_ONCE]
            texts += self.lm.generate(prefix_BPH, sampling, bias=bias, seeds_B=own, beside=beside, lift_BV=lift_BV)
        return texts


def require_encoder(decoder: Decoder, encoder: dict[str, Any]) -> None:
    """Raise `UserError`, showing both fingerprints, unless `decoder` reads the vectors of `encoder`."""
    require_same_space(decoder.encoder, encoder, what=f"decoder {decoder.name}")
