"""The rows of `lsm roundtrip` for the superposition code: every combination of dimensions, bits and prior, greedy and with retry."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lsm.bench.roundtrip import Board, CodeRead, add_noise
from lsm.codes.alphabet import Alphabet
from lsm.codes.superposition import Codes
from lsm.commands.residual import CodeRecipe
from lsm.commands.values import comma_separated, whole_numbers
from lsm.decode.code_prior import LMPrior, Prior, previous_prior, semantic_prior
from lsm.decode.code_reader import GREEDY, LADDER, LADDER_WITHOUT_PRIOR, PLAIN, CodeReader
from lsm.decode.code_search import Rung
from lsm.decode.load import DEFAULT_LM
from lsm.errors import UserError

if TYPE_CHECKING:
    from lsm.commands.roundtrip import Options
    from lsm.decode.load import DecoderSource

PRIORS = ("none", "lm", "semantic", "previous")


@dataclass
class CodeRows:
    """What is to be read: codes in several sizes, through several priors."""

    recipes: list[CodeRecipe]
    priors: list[tuple[str, Prior | None]]
    retry: bool
    device: str

    @property
    def n_rows(self) -> int:
        """Rows that `add_rows` adds."""
        return len(self.recipes) * len(self.priors) * (2 if self.retry else 1)

    def add_rows(self, board: Board, *, seed: int) -> None:
        """Encode the board's sentences, add its noise, read and score."""
        for recipe in self.recipes:
            encoder = recipe.encoder()
            encoder.encode(board.sample.texts[:1])  # the first call makes the signs
            started = time.perf_counter()
            clean = encoder.encode(board.sample.texts)
            encode_seconds = time.perf_counter() - started
            codes = noisy(clean, board.noise, seed)
            reader = CodeReader(encoder, device=self.device)
            for name, prior in self.priors:
                for label, ladder in ladders(prior, retry=self.retry):
                    started = time.perf_counter()
                    reading = reader.read(codes, ladder, prior, noise=board.noise)
                    read = CodeRead("superposition", recipe.dims, recipe.bits, reading.certified_B, codes.bytes_B, encode_seconds)
                    row = f"{_named(recipe)}, prior {name}, {label}"
                    board.add(row, reading.texts, seconds=time.perf_counter() - started, code=read)

    def ways(self) -> list[tuple[str, Callable[[Sequence[str]], list[str]]]]:
        """Whole round trips of texts, greedily with each prior that does not depend on the board's sentences, for the negation probe."""
        found = []
        for recipe in self.recipes:
            encoder = recipe.encoder()
            reader = CodeReader(encoder, device=self.device)
            for name, prior in self.priors:
                if name in ("none", "lm"):
                    ladder = ladders(prior, retry=False)[0][1]

                    def way(texts: Sequence[str], it=reader, ladder=ladder, prior=prior) -> list[str]:
                        return it.read(it.encoder.encode(texts), ladder, prior).texts

                    found.append((f"{_named(recipe)}, prior {name}", way))
        return found


def plan(options: Options, source: DecoderSource, previous: Sequence[str], z_ND: np.ndarray) -> CodeRows:
    """What `--residual-dims`, `--residual-bits` and `--prior` ask for.

    Raises:
        UserError: a number or a prior that does not exist, or a prior whose parts are not there.
    """
    from lsm.lm.frozen import FrozenLM

    names = comma_separated(options.prior)
    unknown = [name for name in names if name not in PRIORS]
    if unknown or not names:
        raise UserError(f"--prior {','.join(unknown) or '(nothing)'}: choose from {', '.join(PRIORS)}")
    prefix = source.prefix() if "semantic" in names else None
    # The semantic prior's LM may carry an adapter's LoRA: the plain priors then get an LM of their own.
    shared = prefix.lm if prefix is not None and not prefix.adapter.settings.lora_rank else None
    lm = shared or (FrozenLM.load(options.lm or DEFAULT_LM, device=source.device) if {"lm", "previous"} & set(names) else None)
    priors: list[tuple[str, Prior | None]] = []
    for name in names:
        if name == "none":
            priors.append((name, None))
        elif name == "semantic":
            assert prefix is not None
            priors.append((name, semantic_prior(prefix, add_noise(z_ND, options.noise, options.seed))))
        else:
            assert lm is not None
            priors.append((name, LMPrior(lm) if name == "lm" else previous_prior(lm, previous)))
    recipe = CodeRecipe(
        lm=options.lm or (prefix.lm.name if prefix else DEFAULT_LM), seed=options.residual_seed, noise=options.residual_noise
    )
    every_bits = whole_numbers(options.residual_bits, "--residual-bits")
    sizes = [(dims, bits) for dims in whole_numbers(options.residual_dims, "--residual-dims") for bits in every_bits]
    recipes = [dataclasses.replace(recipe, dims=dims, bits=bits) for dims, bits in sizes]
    for each in recipes:  # refuses impossible numbers, and an LM of other tokens, before anything long begins
        encoder = each.encoder()
        for used in (lm, prefix.lm if prefix else None):
            if used is not None:
                Alphabet(used.tokens).require(encoder.spec)
    return CodeRows(recipes, priors, options.retry, str(source.device))


def _named(recipe: CodeRecipe) -> str:
    return f"code k={recipe.dims} int{recipe.bits}" + (f" made for noise {recipe.noise:g}" if recipe.noise else "")


def ladders(prior: Prior | None, *, retry: bool) -> list[tuple[str, Sequence[Rung]]]:
    """Greedy reading, and with `retry` the ladder of beams above it."""
    if prior is None:
        return [("greedy", PLAIN), *([("retry", LADDER_WITHOUT_PRIOR)] if retry else [])]
    return [("greedy", GREEDY), *([("retry", LADDER)] if retry else [])]


def noisy(codes: Codes, noise: float, seed: int) -> Codes:
    """Codes with Gaussian noise of `noise` times their root mean square on every entry, rounded back to their levels."""
    if noise == 0:
        return codes
    q_CK = codes.q_CK.astype(np.float64)
    spread_C1 = noise * np.sqrt(np.mean(q_CK**2, axis=1, keepdims=True))
    drawn_CK = np.random.default_rng((seed, 2)).standard_normal(q_CK.shape)
    level = codes.spec.largest_level
    return dataclasses.replace(codes, q_CK=np.clip(np.rint(q_CK + spread_C1 * drawn_CK), -level, level).astype(np.int8))
