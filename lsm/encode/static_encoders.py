"""Encoders without a network: `stub` hashes letters (every path runs offline in seconds), `wordllama` averages static token vectors.

Shape letters: B texts, D vector width, T tokens of all texts together, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm.encode.encoder import EncodedBatch
from lsm.errors import UserError
from lsm.files import fingerprint, sha256_file

if TYPE_CHECKING:
    import torch

_WINDOW = 4096


class StubEncoder:
    """Signed feature hashing of byte trigrams (Weinberger et al. 2009) into 64 unit-norm dimensions; integer arithmetic, no weights.

    Texts that share letters are near each other, which is all that a test wants. Its tokens are bytes.
    `slow` sleeps a little per text, so that a test can kill a run in the middle; the vectors are the same.
    """

    dim = 64
    max_tokens = 512

    def __init__(self, *, slow: bool = False) -> None:
        self.name = "stub-slow" if slow else "stub"
        self._slow = slow

    def fingerprint(self) -> dict[str, Any]:
        """The encoder's fingerprint; `sha256` stands for the hash function."""
        return {
            "name": self.name, "revision": "1", "sha256": fingerprint("byte trigrams, 64 dims, 1"), "pooling": "sum", "normalised": True,
            "dtype": "float32", "dim": self.dim, "max_tokens": self.max_tokens,
        }  # fmt: skip

    def fits(self, text: str) -> bool:
        """Whether the whole text is read."""
        return len(text.encode()) <= self.max_tokens

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Vectors float32 [B, 64]."""
        if self._slow:
            time.sleep(0.0005 * len(texts))
        pieces = [self._encode_window(texts[i : i + _WINDOW]) for i in range(0, len(texts), _WINDOW)] or [self._encode_window([])]
        return EncodedBatch(
            np.concatenate([piece.vectors for piece in pieces]),
            np.concatenate([piece.n_tokens for piece in pieces]),
            np.concatenate([piece.truncated for piece in pieces]),
        )

    def token_states(self, texts: Sequence[str], *, max_tokens: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A fixed random state for each byte, and the mask, as `TransformerEncoder.token_states` gives them."""
        import torch

        limit = min(self.max_tokens, max_tokens or self.max_tokens)
        rows = [list(text.encode("utf-8", "replace"))[:limit] or [0] for text in texts]
        mask_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool)
        states_BTD = torch.zeros(*mask_BT.shape, self.dim)
        table_VD = np.random.Generator(np.random.Philox(0)).standard_normal((256, self.dim)).astype(np.float32)
        for row, data in enumerate(rows):
            mask_BT[row, : len(data)] = True
            states_BTD[row, : len(data)] = torch.from_numpy(table_VD[data])
        return states_BTD, mask_BT

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Bytes of each whole text, int64 [B]."""
        return np.array([len(text.encode("utf-8", "replace")) for text in texts], np.int64)

    def _encode_window(self, texts: Sequence[str]) -> EncodedBatch:
        raw = [text.encode("utf-8", "replace") for text in texts]
        lengths = np.array([len(data) for data in raw], dtype=np.int64)
        read = np.minimum(lengths, self.max_tokens)
        # Start and end marks give even an empty text one trigram.
        letters = np.frombuffer(b"".join(b"\x02" + data[: self.max_tokens] + b"\x03\x03" for data in raw) or b"\0\0\0", np.uint8)
        wide = letters.astype(np.uint32)
        hashed = wide[:-2] * np.uint32(0x9E3779B1) + wide[1:-1] * np.uint32(0x85EBCA77) + wide[2:] * np.uint32(0xC2B2AE3D)
        hashed ^= hashed >> np.uint32(15)
        hashed *= np.uint32(0x2C1B3C6D)
        hashed ^= hashed >> np.uint32(13)
        spans = read + 3
        row = np.repeat(np.arange(len(raw)), spans)[: len(hashed)]
        sign = 1.0 - 2.0 * ((hashed >> np.uint32(6)) & np.uint32(1))[: len(row)]
        ends = np.cumsum(spans)[:-1]
        sign[ends - 1] = sign[ends - 2] = 0.0  # trigrams that would reach into the next text
        flat = row * self.dim + (hashed[: len(row)] & np.uint32(63))
        sums_BD = np.bincount(flat, weights=sign, minlength=len(raw) * self.dim).reshape(len(raw), self.dim)
        sums_BD[~sums_BD.any(axis=1), 0] = 1.0
        unit_BD = sums_BD / np.sqrt((sums_BD**2).sum(axis=1, keepdims=True))
        return EncodedBatch(unit_BD.astype(np.float32), read.astype(np.int32), lengths > self.max_tokens)


class WordLlamaEncoder:
    """Mean of static token vectors, unit norm (wordllama, Miller 2024): a second opinion that shares nothing with a transformer encoder."""

    max_tokens = 4096

    def __init__(self, folder: Path, label: str) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        weights, tokenizer = _one_file(folder, "*.safetensors"), _one_file(folder, "*tokenizer*.json")
        tensors = load_file(weights)
        self._embedding_VD = max(tensors.values(), key=lambda tensor: tensor.size).astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)
        self.name, self.dim = label, int(self._embedding_VD.shape[1])
        self._sha256 = fingerprint({"weights": sha256_file(weights), "tokenizer": sha256_file(tokenizer)})

    def fingerprint(self) -> dict[str, Any]:
        """The encoder's fingerprint."""
        return {
            "name": self.name, "revision": None, "sha256": self._sha256, "pooling": "mean", "normalised": True,
            "dtype": "float32", "dim": self.dim, "max_tokens": self.max_tokens,
        }  # fmt: skip

    def fits(self, text: str) -> bool:
        """Whether the whole text is read (a token is at least one byte)."""
        return len(text.encode()) <= self.max_tokens

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Vectors float32 [B, 256]."""
        vectors_BD = np.zeros((len(texts), self.dim), np.float32)
        n_tokens, truncated = np.zeros(len(texts), np.int32), np.zeros(len(texts), bool)
        for first in range(0, len(texts), _WINDOW):
            found = self._tokenizer.encode_batch_fast(list(texts[first : first + _WINDOW]), add_special_tokens=False)
            for row, encoding in enumerate(found, start=first):
                n_tokens[row], truncated[row] = len(encoding.ids), bool(encoding.overflowing)
                if encoding.ids:
                    vectors_BD[row] = self._embedding_VD[encoding.ids].mean(axis=0)
        norms = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
        vectors_BD[norms[:, 0] == 0, 0] = 1.0  # no token at all: some unit vector rather than NaN
        return EncodedBatch(vectors_BD / np.where(norms == 0, 1.0, norms), n_tokens, truncated)


def _one_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if not found:
        raise UserError(f"encoder folder {folder.name}: no file like {pattern} in it; pull the asset again or name another folder")
    return found[0]
