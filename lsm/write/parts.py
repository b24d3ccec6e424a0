"""Plans of several parts (semantic ‖ learned code) on their way to and from text.

Shape letters: B sentences, D width of all parts, K dims of the learned code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from lsm.decode.decoders import Decoder
from lsm.decode.in_context import ReadsText
from lsm.decode.learned_code import BOUND
from lsm.decode.learned_code_codec import LearnedCodec, from_int8, to_int8
from lsm.decode.vectors import Encode, unit
from lsm.latent.space import Part, beside, slices
from lsm.write.snap import Snap

_JITTER = 0.3
"""Deviation of the noise on a code, whose dims have unit variance, that gives further attempts."""


def encode_parts(texts: Sequence[str], encode: Encode, codec: LearnedCodec, parts: Sequence[Part]) -> np.ndarray:
    """Sentences as the vectors of a model of `parts`, float32 [B, D]; codes are rounded as a corpus keeps them."""
    of_part = {"semantic": lambda: encode(texts), "residual": lambda: from_int8(to_int8(codec.encode(texts).codes_BK))}
    return beside([of_part[part.name]() for part in parts], parts).astype(np.float32)


class SemanticPart:
    """A decoder of semantic vectors for plans that also hold a code, which it leaves aside."""

    def __init__(self, decoder: Decoder, parts: Sequence[Part]) -> None:
        self.decoder, self.where = decoder, slices(parts)["semantic"]
        self.name, self.encoder, self.encoder_calls_per_sentence = decoder.name, decoder.encoder, decoder.encoder_calls_per_sentence

    def read(self, texts: Sequence[str]) -> None:
        """The sentences before those that are worded next, for a decoder that reads them."""
        if isinstance(self.decoder, ReadsText):
            self.decoder.read(texts)

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        return self.decoder.decode(unit(z_BD[:, self.where]), seed=seed)

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        return self.decoder.candidates(unit(z_BD[:, self.where]), k, seed=seed)


class PlannedCode:
    """The learned code's decoder on plans: semantic part ‖ code, or the code alone. A planned code gets the length of real ones."""

    name = "learned"

    def __init__(self, codec: LearnedCodec, parts: Sequence[Part]) -> None:
        self.codec, self.places = codec, slices(parts)
        self.encoder, self.encoder_calls_per_sentence = codec.encoder, 0.0
        self.scale = next(part.scale for part in parts if part.name == "residual")

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        codes_BK = unit(z_BD[:, self.places["residual"]]) / self.scale
        semantic = unit(z_BD[:, self.places["semantic"]]) if "semantic" in self.places else None
        return self.codec.decode(np.clip(codes_BK, -BOUND, BOUND), semantic).texts

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        """The plan as it is, and k − 1 times with noise on its code."""
        generator, where = np.random.default_rng(seed), self.places["residual"]
        attempts = [self.decode(z_BD)]
        for _ in range(k - 1):
            noisy_BD = np.array(z_BD, dtype=np.float32)
            noisy_BD[:, where] = unit(noisy_BD[:, where])
            noisy_BD[:, where] += generator.standard_normal(noisy_BD[:, where].shape) * _JITTER * self.scale
            attempts.append(self.decode(noisy_BD))
        return [list(dict.fromkeys(texts)) for texts in zip(*attempts, strict=True)]


def snap_semantic(snap: Snap, parts: Sequence[Part]) -> Snap:
    """`snap` on the semantic part of a plan; its code stays."""
    where = slices(parts)["semantic"]

    def snapped(plan_D: Tensor, read_SD: Tensor) -> Tensor:
        plan_D = plan_D.clone()
        plan_D[where] = snap(plan_D[where], read_SD[:, where])
        return plan_D

    return snapped
