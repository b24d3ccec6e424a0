"""Contexts that nothing was trained for: the text itself in several ways, its beginning, its best sentences, its principal components.

Shape letters: T tokens, P positions, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lsm.lm.frozen import FrozenLM
from lsm.text.questions import Question
from lsm.text.segment import segment

Encode = Callable[[list[str]], np.ndarray]
"""Texts to sentence vectors."""


def text_vectors(lm: FrozenLM, text: str) -> Tensor:
    """The text's word embeddings [T, H]."""
    return lm.embed_each(lm.tokens.encode([" " + text]) if text else [[]])[0]


def through_untrained(lm: FrozenLM, text: str) -> Tensor:
    """Word embeddings through a random linear adapter that keeps their size."""
    vectors_TH = text_vectors(lm, text).float()
    generator = torch.Generator().manual_seed(0)
    weight_HH = torch.randn(lm.width, lm.width, generator=generator).to(lm.device) / lm.width**0.5
    return vectors_TH @ weight_HH


def first_bytes(lm: FrozenLM, text: str, n: int) -> Tensor:
    """As much of the text as fits into `n` bytes of UTF-8."""
    return text_vectors(lm, text.encode()[: max(0, n)].decode(errors="ignore"))


def best_sentences(lm: FrozenLM, one: Question, n_tokens: int, encode: Encode) -> Tensor:
    """The sentences most like the question, best first until `n_tokens` are full, put in the text's order. It sees the question."""
    sentences = [sentence.text for sentence in segment(one.text)[1]]
    vectors = encode([one.question, *sentences])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    left, chosen = n_tokens, {}
    for place in np.argsort(-(vectors[1:] @ vectors[0]), kind="stable"):
        own_TH = text_vectors(lm, sentences[place])[:left]
        if left > 0 and len(own_TH):
            chosen[int(place)] = own_TH
            left -= len(own_TH)
    return torch.cat([chosen[place] for place in sorted(chosen)]) if chosen else torch.zeros(0, lm.width, device=lm.device)


def principal_components(lm: FrozenLM, text: str, n: int) -> Tensor:
    """The mean of the word embeddings and their leading n − 1 principal directions, each of a word's size, largest first."""
    vectors_TH = text_vectors(lm, text).float()
    mean_H = vectors_TH.mean(0)
    directions = torch.linalg.svd(vectors_TH - mean_H, full_matrices=False)[2][: max(0, n - 1)]
    directions = directions * torch.sign(directions @ mean_H)[:, None]
    found_PH = torch.cat([mean_H[None], directions])[:n]
    return found_PH * (lm.embedding_rms() / found_PH.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-9))


def each(make: Callable[[Question], Tensor]) -> Callable[[list[Question]], tuple[list[Tensor], None]]:
    """A way's `contexts` from a function of one question."""
    return lambda questions: ([make(one) for one in questions], None)
