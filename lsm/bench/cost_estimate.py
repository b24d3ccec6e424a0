"""How long and how large a cell of `lsm bench cost` will be: from shorter cells, or roughly from operations before there are any."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from lsm.bench import flops
from lsm.bench.slopes import extrapolate
from lsm.bench.token_transformer import TokenTransformer
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.provenance import fast_dtype
from lsm.training.optimizer import trained_parameters

if TYPE_CHECKING:
    from lsm.bench.cost import Bench

_SHARE_OF_PEAK = 0.4
"""Of a large matrix product's speed, what models reach: a guess, for the estimate before anything is measured."""
_ENCODER_WEIGHTS, _LM_WEIGHTS, _TEXT_POSITIONS = 11e6, 135e6, 40
"""The default encoder, LM and a worded sentence: for the same estimate."""
_GROWS_AS = {"token-full": 2.0}
"""Exponent that a cell is predicted with from a single shorter one, where it is not 1: too high rather than too low."""


class Estimate:
    """Predictions from the cells that a bench holds so far."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def measured(self, key: tuple[str, str, int], what: str = "seconds") -> dict[int, float]:
        """Tokens → value of the shorter cells of the same system and pass."""
        system, kind, length = key
        return {
            cell["tokens"]: cell[what]
            for (other, pass_, n), cell in self._bench.cells.items()
            if (other, pass_) == (system, kind) and n < length and cell.get(what) is not None
        }

    def seconds(self, key: tuple[str, str, int]) -> float:
        """That one run takes, only a sample being decoded."""
        return self.extrapolated(key, "run_seconds") or self._flops(key) / (_SHARE_OF_PEAK * self._flops_per_second)

    def extrapolated(self, key: tuple[str, str, int], what: str = "seconds") -> float | None:
        """Seconds by the slope of the two longest cells measured; None where there is none."""
        points = self.measured(key, what)
        return extrapolate(points, key[2], alone=_GROWS_AS.get(key[0], 1.0)) if points else None

    def mebibytes(self, key: tuple[str, str, int]) -> float | None:
        """Peak memory, likewise; None before anything is measured."""
        points = {tokens: max(value, 1.0) for tokens, value in self.measured(key, "peak_mebibytes").items()}
        return extrapolate(points, key[2]) if points else None

    def parameters(self) -> dict[str, int]:
        """Weights of the two transformers; the token-level one has its embeddings on top of equal blocks."""
        token, latent = (
            {name: weight.numel() for name, weight in trained_parameters(model).items()} for model in (self._token, self._latent)
        )
        return {
            "token": sum(token.values()),
            "token, embeddings": token["embedding.weight"],
            "latent": sum(n for name, n in latent.items() if not name.startswith("restoration.")),
        }

    def _flops(self, key: tuple[str, str, int]) -> float:
        """Roughly: of encoder and LM only the size of the default ones is known before they are loaded."""
        system, kind, length = key
        bench, training = self._bench, kind == "training"
        if system.startswith("token"):
            window = bench.settings.window if system == "token-window" else None
            return flops.token_flops(self._token, length, training=training, window=window)
        S = len(bench.text.cut(length).sentences)
        total = flops.latent_flops(self._latent, S, training=training)
        if "encoding" in system:
            total += 2 * _ENCODER_WEIGHTS * length
        if "decoding" in system:
            total += 2 * _LM_WEIGHTS * _TEXT_POSITIONS * min(S, bench.settings.decode_sentences)
        return total

    @cached_property
    def _token(self) -> TokenTransformer:
        with torch.device("meta"):
            return TokenTransformer(self._bench.model, self._bench.vocabulary)

    @cached_property
    def _latent(self) -> LatentTransformer:
        with torch.device("meta"):
            return LatentTransformer(LatentConfig(dim=self._bench.encoder["dim"], model=self._bench.model))

    @cached_property
    def _flops_per_second(self) -> float:
        """Of a matrix product, measured for a moment."""
        device = torch.device(self._bench.device)
        n = 4096 if device.type == "cuda" else 768
        a = torch.ones(n, n, device=device, dtype=fast_dtype(device)[0])
        threads = torch.get_num_threads()
        torch.set_num_threads(self._bench.threads)
        float((a @ a)[0, 0])
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a number waits for the GPU
        seconds = time.perf_counter() - start
        torch.set_num_threads(threads)
        return 2 * n**3 / max(seconds, 1e-9)
