"""Contextual sentence vectors: each sentence is read after those before it in its document, and only its own tokens are pooled.

A vector of a sentence alone says what it says; one in context also holds some of what was read ("He refused." — who, what?). It is not
the vector of the sentence's text: a decoder trained on sentences alone words it less well (docs/spaces.md). Known as late chunking (Günther
et al. 2024, arXiv 2409.04701).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lsm.encode.encoder import EncodedBatch, SentenceEncoder
from lsm.errors import UserError


def encode_in_context(encoder: SentenceEncoder, texts: Sequence[str], before: Sequence[str]) -> EncodedBatch:
    """Vectors of `texts`, each read after the text `before` it.

    Raises:
        UserError: an encoder that cannot (`EncoderInfo.reads_context`).
    """
    in_context = getattr(encoder, "encode_in_context", None)
    if in_context is None:
        raise UserError(f"encoder {encoder.name} reads each text by itself and cannot read what stands before it")
    return in_context(texts, before)


def texts_before(documents: Iterable[Sequence[str]], n: int, *, longest: int | None = None) -> list[str]:
    """For each sentence of the documents, in order, the up to `n` sentences before it in its document, as one text.

    Args:
        longest: characters that are kept, from the end: what the encoder could not read anyway need not be held in memory.
    """
    kept = slice(-longest if longest else None, None)
    return [" ".join(sentences[max(place - n, 0) : place])[kept] for sentences in documents for place in range(len(sentences))]
