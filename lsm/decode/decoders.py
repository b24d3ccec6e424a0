"""Vectors to text, three ways behind one verb: the nearest real sentence, a prefix-adapted LM, or the best of several tries.

Shape letters: B vectors, D vector width, K candidates, F trunk width, H hidden width of the LM, A rows still being written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lsm.corpus.format import require_same_space
from lsm.decode.adapter import PrefixAdapter
from lsm.decode.phrase_store import PhraseStore
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM, same_lm
from lsm.lm.generation import Sampling
from lsm.lm.lora import attach_lora, detach_lora, has_lora

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts → vectors float32 [B, D] of the encoder whose vectors are decoded."""
_ROWS_AT_ONCE = 128


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

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        return self._write(z_BD, self.sampling, seed)

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        """The greedy sentence first, then samples at temperature 0.7."""
        warm = dataclasses.replace(self.sampling, temperature=0.7, top_p=0.95)
        greedy = self._write(z_BD, self.sampling, seed)
        drawn = self._write(np.repeat(z_BD, k - 1, axis=0), warm, seed) if k > 1 else []
        return [list(dict.fromkeys([first, *drawn[n * (k - 1) : (n + 1) * (k - 1)]])) for n, first in enumerate(greedy)]

    @torch.inference_mode()
    def _write(self, z_BD: np.ndarray, sampling: Sampling, seed: int) -> list[str]:
        check_vectors(z_BD, self.adapter.home.dim, self.encoder)
        generator = torch.Generator().manual_seed(seed)
        texts: list[str] = []
        for start in range(0, len(z_BD), _ROWS_AT_ONCE):
            trunk_BF = self.adapter.trunk(torch.from_numpy(np.ascontiguousarray(z_BD[start : start + _ROWS_AT_ONCE])).to(self.lm.device))
            prefix_BPH = self.adapter.prefix(trunk_BF, self.lm).prefix_BPH

            def bias(spoken_AH: Tensor, n_tokens: int, rows_A: Tensor, trunk_BF: Tensor = trunk_BF) -> Tensor | None:
                n_tokens_T = torch.tensor([n_tokens], device=spoken_AH.device)
                lift_ATH = self.adapter.bias(trunk_BF[rows_A], spoken_AH[:, None], n_tokens_T)
                return None if lift_ATH is None else lift_ATH[:, 0]

            texts += self.lm.generate(prefix_BPH, sampling, bias=bias, generator=generator)
        return texts


class InversionDecoder:
    """The best of several hypotheses (sampled sentences and near neighbours), judged by re-encoding them: vec2text's ranking without its
    corrector (Morris et al. 2023)."""

    name = "inversion"

    def __init__(self, prefix: PrefixDecoder, store: PhraseStore | None, encode: Encode, *, candidates: int = 8) -> None:
        assert candidates >= 1
        self.prefix, self.encode, self.n_candidates, self.encoder = prefix, encode, candidates, prefix.encoder
        self.retrieval = RetrievalDecoder(store) if store is not None else None
        if store is not None:
            store.require_encoder(prefix.encoder)
        self.encoder_calls_per_sentence = float(candidates)

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        return [texts[0] for texts in self.candidates(z_BD, 1, seed=seed)]

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        """All hypotheses, nearest re-encoding first; k of them."""
        n_near = self.n_candidates // 4 if self.retrieval else 0
        tries = self.prefix.candidates(z_BD, self.n_candidates - n_near, seed=seed)
        near = self.retrieval.candidates(z_BD, n_near, seed=seed) if self.retrieval and n_near else [[] for _ in tries]
        pools = [[text for text in dict.fromkeys([*some, *more]) if text] or [""] for some, more in zip(tries, near, strict=True)]
        flat = [text for pool in pools for text in pool]
        owners = np.repeat(np.arange(len(pools)), [len(pool) for pool in pools])
        cosine_K = (_unit(self.encode([text or "." for text in flat])) * _unit(z_BD)[owners]).sum(1)
        ranked, start = [], 0
        for pool in pools:
            order = np.argsort(-cosine_K[start : start + len(pool)], kind="stable")
            ranked.append([pool[place] for place in order[:k]])
            start += len(pool)
        return ranked


def check_vectors(z_BD: np.ndarray, dim: int, encoder: dict[str, Any], *, refuse_zeros: bool = False) -> None:
    """Refuse vectors that a decoder of `encoder` cannot read.

    Raises:
        UserError: wrong shape, NaN or infinity, or (for a user's own vectors) zeros only; the row is named.
    """
    if z_BD.ndim != 2 or z_BD.shape[1] != dim:
        raise UserError(
            f"vectors have shape {list(z_BD.shape)}, this decoder reads [n, {dim}] of encoder {encoder.get('name')}; "
            "encode with that encoder, or choose another --decoder, --adapter or --index"
        )
    for what, bad_B in (("NaN or infinity", ~np.isfinite(z_BD).all(axis=1)), ("zeros only", ~z_BD.any(axis=1) & refuse_zeros)):
        if bad_B.any():
            row, count = int(bad_B.argmax()), int(bad_B.sum())
            raise UserError(f"vector {row} holds {what} ({count} such rows); leave it out or encode its text again")


def require_encoder(decoder: Decoder, encoder: dict[str, Any]) -> None:
    """Raise `UserError`, showing both fingerprints, unless `decoder` reads the vectors of `encoder`."""
    require_same_space(decoder.encoder, encoder, what=f"decoder {decoder.name}")


def _unit(z_BD: np.ndarray) -> np.ndarray:
    return z_BD / np.maximum(np.linalg.norm(z_BD, axis=1, keepdims=True), 1e-12)
