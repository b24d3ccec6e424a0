"""Wording in context: the text so far counts, its end at least; near sentences lift their words; without both it is as before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lsm.corpus.reader import Corpus
from lsm.decode.adapter import AdapterHome, PrefixAdapter
from lsm.decode.decoders import PrefixDecoder
from lsm.decode.in_context import CONTEXT_TOKENS, ContextDecoder, ReadsText
from lsm.decode.phrase_store import PhraseStore
from lsm.decode.settings import AdapterSettings
from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Sampling


@pytest.fixture(scope="module")
def prefix(small_corpus: Corpus) -> PrefixDecoder:
    lm = FrozenLM.load("stub")
    home = AdapterHome(small_corpus.encoder, lm.fingerprint(), small_corpus.dim, lm.width, len(lm.head_VH), lm.embedding_rms())
    torch.manual_seed(0)
    adapter = PrefixAdapter(AdapterSettings(prefix_length=2, hidden=16, blocks=0), home)
    return PrefixDecoder(lm, adapter, sampling=Sampling(max_new_tokens=8))


@pytest.fixture(scope="module")
def z_BD(small_corpus: Corpus) -> np.ndarray:
    return np.asarray(small_corpus.vectors(0)[:3], dtype=np.float32)


def test_without_text_and_lift_it_is_the_prefix_decoder(prefix: PrefixDecoder, z_BD: np.ndarray) -> None:
    decoder = ContextDecoder(prefix)
    assert isinstance(decoder, ReadsText) and not isinstance(prefix, ReadsText)
    assert decoder.decode(z_BD) == prefix.decode(z_BD)
    decoder.read(["Something."])
    assert decoder.decode(z_BD) != prefix.decode(z_BD)
    decoder.read([])
    assert decoder.decode(z_BD) == prefix.decode(z_BD)


def test_the_end_of_the_text_counts(prefix: PrefixDecoder, z_BD: np.ndarray) -> None:
    decoder = ContextDecoder(prefix, weight=1.0)
    tail = "x" * (CONTEXT_TOKENS - 1)

    def after(*texts: str) -> list[str]:
        decoder.read(texts)
        return decoder.decode(z_BD)

    assert after("One.", tail) == after("Another one.", tail) != after(tail, "One.")
    assert all(len(some) >= 1 for some in decoder.candidates(z_BD, 3))


def test_words_of_near_sentences_are_lifted(prefix: PrefixDecoder, small_corpus: Corpus) -> None:
    store = PhraseStore.from_corpus(small_corpus)
    decoder = ContextDecoder(prefix, store=store, lift=2.0)
    _, lift_BV = decoder.evidence(np.asarray(small_corpus.vectors(0)[:2], dtype=np.float32))
    assert lift_BV is not None and (lift_BV >= 0).all() and lift_BV.shape == (2, len(prefix.lm.head_VH))
    every = set("".join(store.texts(range(len(store)))).encode())
    common = set.intersection(*(set(text.encode()) for text in store.texts(range(len(store)))))
    lifted = {int(n) for n in (lift_BV.sum(0) > 1e-3).nonzero()}
    assert lifted and lifted <= every - common, "letters that all sentences hold tell nothing"
