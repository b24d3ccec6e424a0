"""Text to the symbols of a code and back, exactly: the LM's tokens, or bytes where its tokenizer does not give a text back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

from lsm.codes.spec import MAX_TOKENS, CodeSpec, fall_above
from lsm.errors import UserError


class ExactTokens(Protocol):
    """What a code needs of a tokenizer (`lsm.lm.tokens.Tokens` has it)."""

    def encode_exact(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode_exact(self, rows: Sequence[Sequence[int]]) -> list[str]: ...
    def vocabulary(self) -> dict[str, int]: ...
    def special_ids(self) -> list[int]: ...


class Alphabet:
    """Symbols 0 … V−1 are the tokenizer's tokens, V … V+255 the bytes of UTF-8; a text is in one of the two, never mixed."""

    def __init__(self, tokens: ExactTokens) -> None:
        vocabulary = tokens.vocabulary()
        self.tokens = tokens
        self.size = max(vocabulary.values()) + 1
        canonical = json.dumps(vocabulary, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.sha256 = hashlib.sha256(canonical.encode()).hexdigest()

    def spec(self, *, dims: int = CodeSpec.dims, bits: int = CodeSpec.bits, seed: int = CodeSpec.seed, noise: float = 0.0) -> CodeSpec:
        """The code of these numbers over this tokenizer; `noise` as in `lsm.codes.spec.fall_above`."""
        whole = CodeSpec(vocabulary=self.size, vocabulary_sha256=self.sha256, dims=dims, bits=bits, seed=seed)
        return dataclasses.replace(whole, fall_half_bits=fall_above(noise, bits))

    def require(self, spec: CodeSpec) -> None:
        """Raise `UserError` unless the codes of `spec` are read with this tokenizer."""
        if (spec.vocabulary, spec.vocabulary_sha256) != (self.size, self.sha256):
            raise UserError(
                f"these residual codes are over {spec.vocabulary:,} tokens (sha256 {spec.vocabulary_sha256[:12]}), the tokenizer "
                f"at hand has {self.size:,} (sha256 {self.sha256[:12]}); give the LM that they were encoded with (--lm)"
            )

    def symbols(self, texts: Sequence[str]) -> list[list[int]]:
        """Symbols of each text; `text` gives it back, always.

        Raises:
            UserError: a text is no valid Unicode, or longer than 65,535 symbols.
        """
        for text in texts:
            utf8(text)
        rows = self.tokens.encode_exact(texts)
        for number, (text, row, back) in enumerate(zip(texts, rows, self.tokens.decode_exact(rows), strict=True)):
            if back != text:
                rows[number] = row = [self.size + byte for byte in utf8(text)]
            if len(row) > MAX_TOKENS:
                raise UserError(f"a text of {len(row):,} tokens begins {text[:40]!r}; a residual code holds {MAX_TOKENS:,}: cut it first")
        return rows

    def text(self, symbols: Sequence[int]) -> str:
        """The text of symbols; broken UTF-8 becomes U+FFFD (and so fails its checksum)."""
        if any(symbol >= self.size for symbol in symbols):
            return bytes(max(0, symbol - self.size) for symbol in symbols).decode("utf-8", errors="replace")
        return self.tokens.decode_exact([symbols])[0]


def checksum(text: str) -> int:
    """First four bytes of the sha256 of the text's UTF-8, little endian."""
    return int.from_bytes(hashlib.sha256(utf8(text)).digest()[:4], "little")


def utf8(text: str) -> bytes:
    """UTF-8 of a text; a lone surrogate is the user's fault."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text {text[:40]!r} holds a lone surrogate at {error.start} and is no valid Unicode; mend or drop it"
        ) from error
