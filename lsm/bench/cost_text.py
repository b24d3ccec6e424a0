"""The one document that `lsm bench cost` measures on: sentences and their tokens, cut to each length at the end of a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from lsm.encode.settings import EncodeSettings
from lsm.errors import UserError
from lsm.files import fingerprint, read_json, write_json
from lsm.text.readers import iter_documents
from lsm.text.segment import segment


class Text(NamedTuple):
    """Sentences in reading order and the token ids of each, the white space behind it included."""

    sentences: list[str]
    ids: list[list[int]]

    @property
    def n_tokens(self) -> int:
        """Tokens of all sentences together."""
        return sum(map(len, self.ids))

    def cut(self, tokens: int) -> Text:
        """The longest beginning of whole sentences with at most so many tokens."""
        n = sum(total <= tokens for total in accumulate(map(len, self.ids)))
        return Text(self.sentences[:n], self.ids[:n])

    def require(self, tokens: int) -> None:
        """Raise `UserError` where there are fewer tokens than that, or its beginning has fewer than two sentences."""
        if self.n_tokens < tokens:
            raise UserError(f"--tokens {tokens}: INPUT holds only {self.n_tokens:,} tokens; give more documents or a smaller number")
        if len(self.cut(tokens).ids) < 2:
            least = sum(map(len, self.ids[:2]))
            raise UserError(f"--tokens {tokens}: the first two sentences of INPUT have {least:,} tokens together; ask for more")

    def fingerprint(self) -> str:
        """Sixteen hex digits over sentences and ids."""
        return fingerprint(self)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, {"sentences": self.sentences, "ids": self.ids})

    @classmethod
    def load(cls, path: Path) -> Text:
        """Read what `save` wrote."""
        return cls(**read_json(path))


def read_text(
    inputs: Sequence[str], tokens: int, encode: Callable[[Sequence[str]], list[list[int]]], fits: Callable[[str], bool] | None
) -> Text:
    """Documents end to end until there are at least so many tokens.

    Args:
        encode: token ids of texts.
        fits: the encoder's limit on a sentence, as in `lsm.text.segment.segment`.
    """
    sentences: list[str] = []
    ids: list[list[int]] = []
    held = 0
    for document in iter_documents(inputs):
        _, found = segment(document.text, cap_characters=EncodeSettings.cap_characters, fits=fits)
        rows = encode([sentence.text + (sentence.gap or " ") for sentence in found])
        sentences += [sentence.text for sentence in found]
        ids += rows
        held += sum(map(len, rows))
        if held >= tokens:
            break
    return Text(sentences, ids)
