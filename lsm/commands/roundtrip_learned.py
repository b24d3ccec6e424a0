"""The rows of `lsm roundtrip` for a learned code: any numbers of leading dims, beside the controls that a code is held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lsm.bench.roundtrip import Board, CodeRead, add_noise
from lsm.commands.values import whole_numbers
from lsm.errors import UserError

if TYPE_CHECKING:
    from lsm.commands.roundtrip import Options
    from lsm.decode.learned_code_codec import LearnedCodec
    from lsm.decode.load import DecoderSource
    from lsm.encode.encoder import SentenceEncoder

_BITS = 8


@dataclass
class LearnedRows:
    """A learned codec and the numbers of dims to read with; the semantic vectors stand beside each code."""

    codec: LearnedCodec
    lengths: list[int]
    z_ND: np.ndarray
    controls: bool
    encoder: SentenceEncoder

    @property
    def n_rows(self) -> int:
        """Rows that `add_rows` adds."""
        return len(self.lengths) + (2 if self.controls else 0)

    def add_rows(self, board: Board, *, seed: int) -> None:
        """Encode the board's sentences to int8 codes, add its noise, read and score; the controls have all dims and the right vectors."""
        from lsm.decode.learned_code_codec import from_int8, to_int8

        n, dims = len(board.sample.texts), self.codec.code.settings.dims
        started = time.perf_counter()
        codes_NK = from_int8(to_int8(self.codec.encode(board.sample.texts).codes_BK))
        encode_seconds = time.perf_counter() - started
        noisy_NK, z_ND = add_noise(codes_NK, board.noise, seed + 1), add_noise(self.z_ND, board.noise, seed)
        shift = 1 + seed % max(1, n - 1)
        ways = [(f"learned code k={k} int{_BITS}", noisy_NK[:, :k]) for k in self.lengths]
        if self.controls:
            label = f"learned code k={dims} int{_BITS}"
            ways += [(f"{label}, another's code", np.roll(noisy_NK, shift, axis=0)), (f"{label}, zero code", np.zeros_like(noisy_NK))]
        for label, codes_Nk in ways:
            started = time.perf_counter()
            texts = self.codec.decode(codes_Nk, z_ND).texts
            k = codes_Nk.shape[1]
            read = CodeRead("learned", k, _BITS, np.zeros(n, bool), np.full(n, k), encode_seconds)
            board.add(label, texts, seconds=time.perf_counter() - started, code=read)

    def ways(self) -> list[tuple[str, Callable[[Sequence[str]], list[str]]]]:
        """Whole round trips of texts for the negation probe."""

        def way(texts: Sequence[str], k: int) -> list[str]:
            z_BD = self.encoder.encode(list(texts)).vectors
            return self.codec.decode(self.codec.encode(texts).codes_BK[:, :k], z_BD).texts

        return [(f"learned code k={k}", lambda texts, k=k: way(texts, k)) for k in self.lengths]


def plan(options: Options, source: DecoderSource, encoder: SentenceEncoder, z_ND: np.ndarray) -> LearnedRows:
    """What `--residual-dims` and `--learned-code` ask for.

    Raises:
        UserError: no learned code there, one for another encoder or LM, or more dims than it has.
    """
    from lsm.corpus.format import require_same_space
    from lsm.decode.learned_code import LearnedCode
    from lsm.decode.learned_code_codec import LearnedCodec
    from lsm.decode.shipped import find_learned_code
    from lsm.lm.frozen import FrozenLM

    folder = Path(options.learned_code) if options.learned_code else find_learned_code(encoder.fingerprint())
    code = LearnedCode.from_pretrained(folder)
    require_same_space(code.home.adapter.encoder, encoder.fingerprint(), what=f"learned code {folder}")
    lengths = whole_numbers(options.residual_dims, "--residual-dims")
    if too_long := [k for k in lengths if not 0 <= k <= code.settings.dims]:
        raise UserError(f"--residual-dims {too_long[0]}: the learned code {folder} has {code.settings.dims} dims")
    lm = FrozenLM.load(options.lm or code.home.adapter.lm["name"], device=source.device)
    codec = LearnedCodec(lm, code, getattr(encoder, "token_states", None))
    return LearnedRows(codec, lengths, z_ND, options.controls, encoder)
