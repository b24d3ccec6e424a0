"""What a corrector learns from: hypotheses for a corpus's sentences and their vectors, written once and kept beside the run.

Shape letters: N sentences, D vector width, B rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lsm.decode.decoders import Decoder
from lsm.decode.reading import TokenizedSentences
from lsm.decode.vectors import Encode, unit
from lsm.files import atomic_write
from lsm.lm.tokens import Tokens
from lsm.progress import Progress


class Hypotheses:
    """Tokens and re-encoded vectors of one hypothesis for each of N sentences."""

    def __init__(self, ids: list[np.ndarray], z_ND: np.ndarray) -> None:
        self.ids, self.z_ND = ids, z_ND
        self.lengths_N = np.array([len(row) for row in ids], dtype=np.int64)

    @classmethod
    def prepare(
        cls, folder: Path, sentences: TokenizedSentences, decoder: Decoder, encode: Encode, tokens: Tokens,
        *, numbers_N: np.ndarray, chunk: int, made_by: str, quiet: bool = False,
    ) -> Hypotheses:  # fmt: skip
        """Read the hypotheses of sentences `numbers_N` from `folder`, after writing those that are not there.

        Args:
            decoder: writes them, greedily.
            encode: gives their vectors.
            chunk: sentences in one file; a finished file is never written again.
            made_by: what the hypotheses depend on; a file of something else is replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        ids: list[np.ndarray] = []
        vectors: list[np.ndarray] = []
        with Progress("hypotheses", len(numbers_N), "sentences", quiet=quiet) as progress:
            for start in range(0, len(numbers_N), chunk):
                some_B, path = numbers_N[start : start + chunk], folder / f"{start:08d}.safetensors"
                made = f"{made_by} {sentences.rows_N[some_B].tolist()}"
                found = _read(path, made)
                if found is None:
                    texts = decoder.decode(sentences.vectors(some_B).numpy(), seed=0)
                    found = [np.array(row, dtype=np.int32) for row in tokens.encode(texts)], _encoded(encode, texts)
                    _write(path, made, *found)
                ids += found[0]
                vectors.append(found[1])
                progress.advance(len(some_B))
        return cls(ids, np.concatenate(vectors))


def _encoded(encode: Encode, texts: list[str]) -> np.ndarray:
    """Unit vectors as float16, as a corpus would hold them; those of empty texts are zeros."""
    written = [n for n, text in enumerate(texts) if text]
    z_ND = unit(encode([texts[n] for n in written] or ["nothing"]))
    out_ND = np.zeros((len(texts), z_ND.shape[1]), dtype=np.float16)
    out_ND[written] = z_ND[: len(written)]
    return out_ND


def _write(path: Path, made: str, ids: list[np.ndarray], z_ND: np.ndarray) -> None:
    flat = np.concatenate([*ids, np.zeros(0, np.int32)]).astype(np.int32)
    lengths = np.array([len(row) for row in ids], dtype=np.int32)
    arrays = {"ids": torch.from_numpy(flat), "lengths": torch.from_numpy(lengths), "z": torch.from_numpy(z_ND)}
    with atomic_write(path) as file:
        file.write(save(arrays, metadata={"made_by": made}))


def _read(path: Path, made: str) -> tuple[list[np.ndarray], np.ndarray] | None:
    """A chunk, or None where there is none, a damaged one or one of something else."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("made_by") != made:
                return None
            ids, lengths, z_ND = (file.get_tensor(name).numpy() for name in ("ids", "lengths", "z"))
    except (OSError, SafetensorError):
        return None
    return np.split(ids, np.cumsum(lengths)[:-1]), z_ND
