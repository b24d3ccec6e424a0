"""Which sentences go on a round trip: a seeded draw of distinct ones from documents or from a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsm.corpus.format import MANIFEST
from lsm.corpus.reader import Corpus
from lsm.errors import UserError

_OTHERS = 20_000
_POOL_FACTOR = 50
"""Reading stops when so many times the wanted number of sentences is there to draw from: inputs may be endless."""


@dataclass(frozen=True)
class Drawn:
    """Sentences in reading order with the number of their document, 0 … G−1."""

    texts: list[str]
    document_N: np.ndarray
    n_pool: int
    """Distinct sentences that were drawn from."""
    previous: list[str]
    """The sentence before each in its document; "" for a document's first."""
    others: list[str]
    """Some of the sentences that were not drawn, for what must be fitted to other text."""


def is_corpus(value: str) -> bool:
    """Whether an INPUT is the folder of an encoded corpus."""
    return (Path(value) / MANIFEST).is_file()


def corpus_sentences(corpus: Corpus) -> Iterable[list[str]]:
    """The sentences of each document."""
    return (corpus.texts(doc) for doc in range(corpus.n_documents))


def draw(documents: Iterable[Sequence[str]], n: int, *, seed: int) -> Drawn:
    """Draw `n` distinct sentences (or all, when there are fewer).

    Raises:
        UserError: no sentence at all.
    """
    pool: dict[str, tuple[int, str]] = {}
    for number, sentences in enumerate(documents):
        previous = ""
        for text in sentences:
            pool.setdefault(text, (number, previous))
            previous = text
        if len(pool) >= _POOL_FACTOR * n:
            break
    if not pool:
        raise UserError("INPUT holds no sentence; give documents with text in them")
    texts, places = list(pool), list(pool.values())
    chosen = np.sort(np.random.default_rng(seed).permutation(len(texts))[:n])
    document_N = np.unique([places[k][0] for k in chosen], return_inverse=True)[1]
    others = [texts[k] for k in np.setdiff1d(np.arange(len(texts)), chosen)[:_OTHERS]]
    return Drawn([texts[k] for k in chosen], document_N, len(texts), [places[k][1] for k in chosen], others)


def segmented(documents: Iterable[str], segment: Callable[[str], tuple[str, list]]) -> Iterable[list[str]]:
    """The sentences of each document's text, as `lsm.text.segment.segment` cuts them."""
    return ([sentence.text for sentence in segment(text)[1]] for text in documents)
