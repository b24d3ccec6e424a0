"""Contextual sentence vectors: each sentence is read after those before it in its document, and only its own tokens are pooled.

A vector of a sentence alone says what it says; one in context also says what it is about ("He refused." — who, what?), and so more about
what comes next. It is no longer the vector of the sentence's text: a decoder trained on sentences alone words it less well. Known as late
chunking (Günther et al. 2024, arXiv 2409.04701).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lsm.encode.encoder import EncodedBatch, SentenceEncoder
from lsm.errors import UserError


def encode_in_context(encoder: SentenceEncoder, texts: Sequence[str], before: Sequence[str]) -> EncodedBatch:
    """Vectors of `texts`, each read after the text `before` it.

    Raises:
        UserError: an encoder that cannot: one without attention, one that pools its first token, or one run by sentence-transformers.
    """
    in_context = getattr(encoder, "encode_in_context", None)
    if in_context is None:
        raise UserError(f"--context-sentences: encoder {encoder.name} reads each text by itself; use one with mean pooling (minilm)")
    return in_context(texts, before)


def texts_before(documents: Iterable[Sequence[str]], n: int) -> list[str]:
    """For each sentence of the documents, in order, the up to `n` sentences before it in its document, as one text."""
    return [" ".join(sentences[max(place - n, 0) : place]) for sentences in documents for place in range(len(sentences))]
