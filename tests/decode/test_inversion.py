"""Inversion: within its budget, nearer with more of it, the same alone and in a batch, with whatever parts are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.corpus.reader import Corpus
from lsm.decode.adapter import AdapterHome, PrefixAdapter
from lsm.decode.composing import Composer
from lsm.decode.correcting import Writer
from lsm.decode.corrector import Corrector
from lsm.decode.decoders import PrefixDecoder, RetrievalDecoder
from lsm.decode.edits import Edit, applied, compatible
from lsm.decode.inversion import InversionDecoder, Parts
from lsm.decode.lexicon import Lexicon
from lsm.decode.load import DecoderSource
from lsm.decode.phrase_store import PhraseStore, phrases_beside
from lsm.decode.settings import AdapterSettings
from lsm.decode.vectors import unit
from lsm.decode.wording import pieces_of, read
from lsm.encode.encoder import load_encoder
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Sampling
from tests.decode.conftest import ANIMALS, DEEDS

ENCODER = load_encoder("stub")
TEXTS = ["The fox sings in the wood.", "A hare waits by the sea at home.", "Nobody knows the crow."]


def encode(texts: Sequence[str]) -> np.ndarray:
    return ENCODER.encode(texts).vectors


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return FrozenLM.load("stub")


@pytest.fixture(scope="module")
def lexicon(lm: FrozenLM) -> Lexicon:
    words = ["the", "a", "The", "A", "at", "in", "by", *ANIMALS, *DEEDS, "home", "wood", "sea", "nobody", "knows"]
    return Lexicon(words, lm.tokens, encode(words))


@pytest.fixture(scope="module")
def make(small_corpus: Corpus, lm: FrozenLM, lexicon: Lexicon) -> Callable[..., InversionDecoder]:
    """`make(encoder_calls=…, **parts)`: a decoder of every part, or of those that are given."""
    store = PhraseStore.from_corpus(small_corpus)
    phrases = PhraseStore.phrases_from_corpus(small_corpus, encode)

    def decoder(*, encoder_calls: int = 60, fluency: float = 0.0, **parts: object) -> InversionDecoder:
        chosen = {"store": store, "phrases": phrases, "lexicon": lexicon} | parts
        return InversionDecoder(
            Parts(encoder=small_corpus.encoder, encode=encode, lm=lm, **chosen), encoder_calls=encoder_calls, fluency=fluency
        )

    return decoder


def prefix_for(corpus: Corpus, lm: FrozenLM) -> PrefixDecoder:
    home = AdapterHome(
        encoder=corpus.encoder, lm=lm.fingerprint(), dim=64, lm_width=lm.width, vocabulary=len(lm.head_VH), embedding_rms=0.1
    )
    torch.manual_seed(3)
    return PrefixDecoder(lm, PrefixAdapter(AdapterSettings(prefix_length=2, hidden=16), home), sampling=Sampling(max_new_tokens=12))


def cosines(texts: Sequence[str], wanted: Sequence[str] = TEXTS) -> np.ndarray:
    return (encode([text or "." for text in texts]) * encode(wanted)).sum(1)


def test_more_calls_come_nearer_and_none_is_overspent(make: Callable[..., InversionDecoder]) -> None:
    before = np.full(len(TEXTS), -1.0)
    for limit in (1, 3, 8, 20, 45, 90):
        decoder = make(encoder_calls=limit)
        found = decoder.decode(encode(TEXTS))
        assert decoder.encoder_calls_per_sentence <= limit
        assert all(calls <= limit for trail in decoder.trails for calls, _ in trail)
        assert (cosines(found) >= before - 1e-6).all(), limit
        before = cosines(found)
    assert (before > cosines(RetrievalDecoder(make().parts.store).decode(encode(TEXTS))))[1:].all(), "the first is stored"


def test_the_best_is_kept_from_round_to_round(make: Callable[..., InversionDecoder]) -> None:
    decoder = make(encoder_calls=90)
    found = decoder.decode(encode(TEXTS))
    for text, final, trail in zip(TEXTS, found, decoder.trails, strict=True):
        rising = cosines([best for _, best in trail], [text] * len(trail))
        assert (np.diff(rising) >= -1e-6).all() and trail[-1][1] == final
        assert [calls for calls, _ in trail] == sorted(calls for calls, _ in trail)


def test_batched_is_one_by_one_and_twice_is_the_same(make: Callable[..., InversionDecoder]) -> None:
    z_BD = encode(TEXTS)
    together = make().candidates(z_BD, 3)
    assert together == make().candidates(z_BD * 5.0, 3)
    assert together == [make().candidates(z_BD[n : n + 1], 3)[0] for n in range(len(TEXTS))]


def test_batched_is_one_by_one_with_an_adapter_and_with_contexts_of_any_length(
    make: Callable[..., InversionDecoder], small_corpus: Corpus, lm: FrozenLM
) -> None:
    prefix = prefix_for(small_corpus, lm)
    writer = Writer.of(FrozenLM.load("stub"), Corrector(prefix.adapter, lora_rank=0, hypothesis_tokens=24, sentence_tokens=12))
    for parts in ({"prefix": prefix, "writer": writer}, {"store": None, "phrases": None}):
        z_BD = encode(["A fox.", *TEXTS])
        together = make(**parts).candidates(z_BD, 3)
        assert together == [make(**parts).candidates(z_BD[n : n + 1], 3)[0] for n in range(len(z_BD))]


def test_a_corrector_is_asked_before_any_edit(make: Callable[..., InversionDecoder], small_corpus: Corpus, lm: FrozenLM) -> None:
    prefix = prefix_for(small_corpus, lm)
    writer = Writer.of(FrozenLM.load("stub"), Corrector(prefix.adapter, lora_rank=0, hypothesis_tokens=24))
    writer.write = lambda z_RD, own_RD, texts, **_: [TEXTS[int(n)] for n in (z_RD @ encode(TEXTS).T).argmax(1)]  # ty: ignore[invalid-assignment]
    decoder = make(encoder_calls=20, store=None, prefix=prefix, writer=writer)
    assert decoder.decode(encode(TEXTS)) == TEXTS and all(trail[1][0] <= 14 for trail in decoder.trails)


def test_a_known_sentence_is_found_at_once_and_the_search_stops(make: Callable[..., InversionDecoder]) -> None:
    decoder = make(encoder_calls=500)
    assert decoder.decode(encode(["The wolf runs by the sea."])) == ["The wolf runs by the sea."]
    assert decoder.encoder_calls_per_sentence < 200, "no gain is left, so the budget is not spent"


def test_it_works_with_nothing_but_an_lm(make: Callable[..., InversionDecoder], lm: FrozenLM) -> None:
    empty = Lexicon([], lm.tokens, np.zeros((0, 64), np.float32))
    for parts in ({"store": None}, {"store": None, "phrases": None}, {"store": None, "phrases": None, "lexicon": empty}):
        decoder = make(encoder_calls=30, **parts)
        assert len(decoder.decode(encode(TEXTS))) == len(TEXTS) and decoder.encoder_calls_per_sentence <= 30


def test_an_adapter_gives_hypotheses(make: Callable[..., InversionDecoder], small_corpus: Corpus, lm: FrozenLM) -> None:
    prefix = prefix_for(small_corpus, lm)
    decoder = make(encoder_calls=20, prefix=prefix, store=None)
    found = decoder.decode(encode(TEXTS), seed=1)
    assert (cosines(found) >= cosines(prefix.decode(encode(TEXTS))) - 1e-6).all()
    assert decoder.decode(encode(TEXTS), seed=1) == found


def test_zeros_do_no_harm_and_nan_is_refused(make: Callable[..., InversionDecoder]) -> None:
    assert len(make(encoder_calls=20).decode(np.zeros((1, 64), np.float32))) == 1
    assert make().decode(np.zeros((0, 64), np.float32)) == []
    with pytest.raises(UserError, match="vector 1 holds NaN"):
        make().decode(np.stack([encode(["a"])[0], np.full(64, np.nan, np.float32)]))
    with pytest.raises(UserError, match="--encoder-calls 0"):
        make(encoder_calls=0)


def test_fluency_counts_what_the_lm_thinks(make: Callable[..., InversionDecoder], lm: FrozenLM, lexicon: Lexicon) -> None:
    def log_probability(texts: list[str]) -> float:
        return sum(reading.log_probability for reading in read(lm, texts, lexicon.first_W))

    near, fluent = (make(encoder_calls=90, fluency=fluency).decode(encode(TEXTS)) for fluency in (0.0, 0.01))
    assert log_probability(fluent) > log_probability(near) and cosines(fluent).mean() < cosines(near).mean()


def test_pieces_and_edits_add_up() -> None:
    text = 'He said: "It\'s 3.5 km, no?"'
    pieces = pieces_of(text)
    assert "".join(pieces) == text
    made = applied(pieces_of("The fox sleeps."), [Edit(1, 2, "wolf", "replace"), Edit(3, 3, "at home", "insert"), Edit(0, 1, "", "delete")])
    assert made == "Wolf sleeps at home."
    bracketed = applied(pieces_of('The (old) fox said "good".'), [Edit(2, 3, "sad", "replace"), Edit(7, 8, "bad", "replace")])
    assert bracketed == 'The (sad) fox said "bad".'
    assert compatible([Edit(1, 2, "wolf", "replace")], Edit(3, 3, "at home", "insert"))
    assert not compatible([Edit(1, 2, "wolf", "replace")], Edit(2, 2, "sad", "insert"))


def test_read_scores_as_the_lm_does(lm: FrozenLM, lexicon: Lexicon) -> None:
    together = read(lm, [*TEXTS, ""], lexicon.first_W)
    for text, reading in zip([*TEXTS, ""], together, strict=True):
        (alone,) = read(lm, [text], lexicon.first_W)
        np.testing.assert_allclose(alone.piece_P, reading.piece_P, rtol=1e-3, atol=1e-3)
        assert abs(reading.log_probability - reading.piece_P.sum()) < 1e-2
        assert reading.expected_PW.shape == (len(reading.pieces) + 1, len(lexicon))


def test_composing_is_drawn_to_its_target(lm: FrozenLM, lexicon: Lexicon) -> None:
    composer = Composer(lm, lexicon)
    start = lm.embed(torch.tensor([[lm.tokens.end_id]] * 2))
    found = composer.compose(unit(encode(TEXTS[:2])), start, strength=50.0, width=3, max_tokens=12)
    assert len(found) == 2 and all(1 <= len(some) <= 3 for some in found)
    (alone,) = composer.compose(unit(encode(TEXTS[:1])), start[:1], strength=50.0, width=3, max_tokens=12)
    assert alone == found[0]


def test_decoders_by_name(small_corpus: Corpus, tmp_path: Path) -> None:
    index = tmp_path / "store"
    PhraseStore.from_corpus(small_corpus).save(index)
    PhraseStore.phrases_from_corpus(small_corpus, encode).save(phrases_beside(index))
    source = DecoderSource(encoder=small_corpus.encoder, index=index, lm="stub", encode=encode, encoder_calls=12)
    guided, inversion, retrieval = source.load(["guided", "inversion", "retrieval"])
    assert (guided.name, inversion.name, retrieval.name) == ("guided", "inversion", "retrieval")
    assert isinstance(guided, InversionDecoder) and guided.parts.phrases is not None and len(guided.parts.phrases) > 0
    assert len(guided.decode(encode(TEXTS))) == len(TEXTS) and 0 < guided.encoder_calls_per_sentence <= 12
