"""Which texts are crammed: the beginnings of documents, and texts of random words as control."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lsm.cram.text import Target
from lsm.errors import UserError

if TYPE_CHECKING:
    from lsm.lm.tokens import Tokens
    from lsm.text.documents import Document

_READ_CHARACTERS = 20_000
"""Of each document: where random words come from."""
_CHARACTERS_PER_TOKEN = 16
"""More than most texts have, so that a beginning is long enough without tokenising a novel."""


def beginnings(
    documents: Iterable[Document], tokens: Tokens, *, n_texts: int, n_tokens: int, skip: int = 0
) -> tuple[list[Target], list[str]]:
    """`n_tokens` tokens, after the first `skip`, of the first documents that have so many; and their distinct words, sorted.

    Raises:
        UserError: too few documents are long enough.
    """
    found: list[Target] = []
    words: set[str] = set()
    if n_texts == 0:
        return [], []
    for document in documents:
        ids = tokens.encode_exact([document.text[: (skip + n_tokens) * _CHARACTERS_PER_TOKEN]])[0][skip : skip + n_tokens]
        if len(ids) == n_tokens:
            found.append(Target(name=document.doc_id, kind="natural", ids=ids))
            words |= {word for word in document.text[:_READ_CHARACTERS].split() if word.isalpha() and word.islower()}
        if len(found) == n_texts:
            return found, sorted(words)
    raise UserError(
        f"only {len(found)} of the documents have {skip + n_tokens} tokens, {n_texts} are wanted; give others, or lower --texts or "
        "--growth.max-tokens"
    )


def random_texts(words: list[str], tokens: Tokens, *, n_texts: int, n_tokens: int, seed: int) -> list[Target]:
    """Texts of words drawn one by one from `words`, each as likely as any other.

    Raises:
        UserError: there are no words.
    """
    if n_texts and not words:
        raise UserError("the documents hold no lower-case words to draw random texts from; set --random-texts 0")
    drawn = random.Random(seed)
    rows = tokens.encode_exact([" ".join(drawn.choices(words, k=n_tokens)) for _ in range(n_texts)])
    return [Target(name=f"random-{n}", kind="random", ids=row[:n_tokens]) for n, row in enumerate(rows)]
