"""Which sentences go on a round trip: a seeded draw of distinct ones from documents or from a corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsm.corpus.format import MANIFEST
from lsm.corpus.reader import Corpus
from lsm.errors import UserError
from lsm.text.segment import Sentence

_OTHERS = 20_000
_POOL_FACTOR = 50
"""Reading stops when so many times the wanted number of sentences is there to draw from: inputs may be endless."""


@dataclass(frozen=True)
class Drawn:
    """Sentences in reading order with the number of their document."""

    texts: list[str]
    document_N: np.ndarray
    """0 … G−1."""
    n_pool: int
    """Distinct sentences that were drawn from."""
    previous: list[str]
    """The sentence before each in its document; "" for a document's first."""
    others: list[str]
    """Some of the sentences that were not drawn, for what must be fitted to other text."""
    others_document_N: np.ndarray
    """Number of their documents; those that none was drawn from are numbered on from G."""


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
    numbers: dict[int, int] = {}
    document_N = np.array([numbers.setdefault(places[k][0], len(numbers)) for k in chosen])
    left = np.setdiff1d(np.arange(len(texts)), chosen)[:_OTHERS]
    others_document_N = np.array([numbers.setdefault(places[k][0], len(numbers)) for k in left], dtype=np.int64)
    previous = [places[k][1] for k in chosen]
    return Drawn([texts[k] for k in chosen], document_N, len(texts), previous, [texts[k] for k in left], others_document_N)


def whole_sentences(sentences: Sequence[Sentence]) -> list[Sentence]:
    """Those that were not cut at clause boundaries."""
    following = [*(sentence.part for sentence in sentences[1:]), 0]
    return [sentence for sentence, after in zip(sentences, following, strict=True) if sentence.part == 0 and after == 0]


def segmented(documents: Iterable[str], segment: Callable[[str], tuple[str, list]]) -> Iterable[list[str]]:
    """The sentences of each document's text, as `lsm.text.segment.segment` cuts them."""
    return ([sentence.text for sentence in segment(text)[1]] for text in documents)
