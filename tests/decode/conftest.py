"""A small corpus of made-up sentences under the stub encoder, and a stub adapter's task."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lsm.corpus.reader import Corpus
from lsm.corpus.writer import SegmentedDocument, text_sha256, write_corpus
from lsm.encode.encoder import load_encoder

ANIMALS, DEEDS, PLACES = ("fox", "crow", "hare", "wolf"), ("sleeps", "sings", "waits", "runs"), ("at home", "in the wood", "by the sea")


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """24 documents of 12 sentences, with repetitions among them."""
    texts = [f"The {a} {d} {p}." for a in ANIMALS for d in DEEDS for p in PLACES]
    documents = []
    for number in range(24):
        chosen = [texts[(number * 7 + step * 5) % len(texts)] for step in range(12)]
        sentences, at = [], 0
        for text in chosen:
            sentences.append(SimpleNamespace(text=text, char_start=at, char_end=at + len(text), gap=" ", section=0, part=0))
            at += len(text) + 1
        whole = "".join(text + " " for text in chosen)
        documents.append(SegmentedDocument(f"doc {number}", "test", "", text_sha256(whole), len(whole), "", sentences))
    encoder = load_encoder("stub")
    vectors = encoder.encode([s.text for d in documents for s in d.sentences]).vectors
    path: Path = tmp_path_factory.mktemp("corpus") / "corpus"
    write_corpus(path, documents, vectors, encoder.fingerprint())
    return Corpus.open(path)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Matrices this small are slower on two threads."""
    torch.set_num_threads(1)
