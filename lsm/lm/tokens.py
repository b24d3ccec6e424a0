"""Text to token ids and back, in the two ways a frozen LM comes: a tokenizer folder, or bytes for the built-in stub.

Shape letters: B rows, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lsm.errors import UserError


class Tokens(Protocol):
    """What the frozen LM needs of a tokenizer."""

    end_id: int
    start_ids: list[int]
    """What the LM was trained to find before every text, such as Gemma's <bos>; empty for most."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, no special tokens added."""
        ...

    def starts(self, texts: Sequence[str]) -> list[list[int]]:
        """For each token of `encode` the character of its text at which it begins."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        ...

    def encode_exact(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text with nothing taken for a special token, so that `decode_exact` gives most texts back."""
        ...

    def decode_exact(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids, every token written out."""
        ...

    def vocabulary(self) -> dict[str, int]:
        """Token → id."""
        ...

    def special_ids(self) -> list[int]:
        """Ids that `encode_exact` never gives."""
        ...


class ByteTokens:
    """UTF-8 bytes as tokens 0–255 and an end token 256."""

    end_id = 256
    start_ids: list[int] = []  # noqa: RUF012
    size = 257

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode("utf-8", errors="replace")) for text in texts]

    def starts(self, texts: Sequence[str]) -> list[list[int]]:
        return [[i for i, letter in enumerate(text) for _ in letter.encode("utf-8", errors="replace")] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    encode_exact = encode

    def decode_exact(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [self.decode(row) for row in rows]

    def vocabulary(self) -> dict[str, int]:
        return {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<end>": self.end_id}

    def special_ids(self) -> list[int]:
        return [self.end_id]


class FolderTokens:
    """A Hugging Face tokenizer read from a folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: no usable tokenizer there ({str(error).splitlines()[0]}); give a causal LM's folder") from error
        if self._tokenizer.eos_token_id is None:
            raise UserError(f"{folder}: its tokenizer has no end token; give a causal LM whose tokenizer_config.json names an eos_token")
        self.end_id = int(self._tokenizer.eos_token_id)
        # Some tokenizers put the end token behind a text too, and some begin texts with that very token.
        around = self._tokenizer("a").input_ids
        self.start_ids = around[: around.index(inner[0])] if (inner := self.encode(["a"])[0]) and inner[0] in around else []

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False).input_ids if len(texts) else []

    def starts(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True).offset_mapping if len(texts) else []
        return [[start for start, _ in row] for row in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def encode_exact(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True).input_ids if len(texts) else []

    def decode_exact(self, rows: Sequence[Sequence[int]]) -> list[str]:
        if (fast := getattr(self._tokenizer, "backend_tokenizer", None)) is not None:
            return fast.decode_batch([list(row) for row in rows], skip_special_tokens=False)
        return [self._tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False) for row in rows]

    def vocabulary(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()

    def special_ids(self) -> list[int]:
        return sorted(self._tokenizer.all_special_ids)


STUB = "stub"


def load_tokens(name: str) -> Tokens:
    """The tokenizer of an LM (asset name, hub id, folder, or `stub`) without the LM.

    Raises:
        UserError: unknown name, or no tokenizer there.
    """
    if name == STUB:
        return ByteTokens()
    from lsm.assets import resolve

    return FolderTokens(Path(resolve(name).path))


def opening_ids(tokens: Tokens) -> list[int]:
    """What a text's first token is told from: what the LM expects before every text, or one end token, as between two documents."""
    return list(tokens.start_ids) or [tokens.end_id]


def n_agreeing(row: Sequence[int], target: Sequence[int]) -> int:
    """Tokens of `target` that `row` gives back before its first error."""
    agreed = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(row, target, strict=False))
    return sum(1 for _ in agreed)


def pad_ids(rows: Sequence[Sequence[int]], end_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids padded on the right with the end token: ids_BT int64 and mask_BT bool (True = real token)."""
    width = max((len(row) for row in rows), default=0)
    ids_BT = torch.full((len(rows), width), end_id, dtype=torch.int64)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask_BT[index, : len(row)] = True
    return ids_BT, mask_BT


def log_odds(share_V: Tensor, background_V: Tensor, *, rare: float = 0.05, most: float = 3.0) -> Tensor:
    """How much likelier tokens are in a sentence than in any: log((share + rare) / (background + rare)), between 0 and `most`."""
    return torch.log((share_V + rare) / (background_V + rare)).clamp(0, most)
