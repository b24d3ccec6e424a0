"""Byte references against values known by hand or by another path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.bench import byte_references
from lsm.bench.byte_references import lm_bits, train_dictionary
from lsm.bench.text_metrics import ZSTD_LEVEL, zstd_bytes
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM

OTHER = [f"The committee of year {n} met in the town hall to speak of bridges, schools and taxes." for n in range(400)]
JUDGED = ["The committee met in the old town hall to speak of schools and bridges.", "Größe", "x" * 300, ""]


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return FrozenLM.load("stub")


def test_a_dictionary_of_other_text_shortens_what_is_like_it_and_gives_it_back() -> None:
    dictionary = train_dictionary(OTHER)
    alone, helped = zstd_bytes(JUDGED), zstd_bytes(JUDGED, dictionary)
    assert helped[0] < 0.6 * alone[0]
    frame = zstandard.ZstdCompressor(level=ZSTD_LEVEL, dict_data=dictionary, write_dict_id=False).compress(JUDGED[0].encode())
    assert len(frame) == helped[0]
    assert zstandard.ZstdDecompressor(dict_data=dictionary).decompress(frame).decode() == JUDGED[0]
    assert train_dictionary(OTHER).as_bytes() == dictionary.as_bytes()
    assert 10 * len(dictionary.as_bytes()) <= sum(map(len, OTHER))


def test_judged_texts_never_reach_the_dictionary() -> None:
    seen = [f"Quokka number {n} sings of Zanzibar with a xylophone in every one of its paws." for n in range(400)]
    assert b"Zanzibar" in train_dictionary([*OTHER, *seen]).as_bytes()
    assert train_dictionary([*OTHER, *seen], leave_out=seen).as_bytes() == train_dictionary(OTHER).as_bytes()
    with pytest.raises(UserError, match="too few to train a zstd dictionary"):
        train_dictionary(["one", "two"])


def test_zstd_of_an_incompressible_text_is_the_text_and_its_frame() -> None:
    assert zstd_bytes(["abcdefg"]).tolist() == [7 + 9]  # magic 4, descriptor 1, content size 1, block header 3


def test_bits_of_a_uniform_lm_are_known() -> None:
    uniform = FrozenLM.load("stub")
    uniform.head_VH.data.zero_()
    bits = lm_bits(uniform, JUDGED)
    np.testing.assert_allclose(bits, [math.log2(257) * (len(text.encode()) + 1) for text in JUDGED], rtol=1e-6)
    measured = byte_references.measure(JUDGED, dictionary_texts=OTHER, lm=uniform)
    assert measured.lm_bytes_N is not None and measured.lm_bytes_N.tolist() == [math.ceil(b / 8) for b in bits]
    assert measured.utf8_N.tolist() == [len(text.encode()) for text in JUDGED]
    assert set(measured.columns()) == {"utf8_bytes", "zstd_bytes", "zstd_dictionary_bytes", "lm_entropy_bits", "lm_entropy_bytes"}
    assert measured.dictionary_bytes and all(values.shape == (4,) for values in measured.columns().values())


def test_bits_are_those_of_the_plain_forward_pass(lm: FrozenLM) -> None:
    text, start = "Bits.", [7, 8]
    ids = torch.tensor([[*start, *text.encode(), 256]])
    log_p = torch.log_softmax(lm.model(input_ids=ids).logits[0].double(), dim=-1)
    expected = -sum(log_p[place - 1, ids[0, place]].item() for place in range(len(start), ids.shape[1])) / math.log(2)
    assert lm_bits(lm, [text], start_ids=start)[0] == pytest.approx(expected, rel=1e-5)
    assert lm_bits(lm, [text])[0] == pytest.approx(lm_bits(lm, [text], start_ids=[256])[0]) != pytest.approx(expected, rel=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=6), st.integers(1, 80))
def test_batches_change_nothing(texts: list[str], batch_tokens: int) -> None:
    lm = FrozenLM.load("stub")
    together = lm_bits(lm, texts, batch_tokens=batch_tokens)
    np.testing.assert_allclose(together, [lm_bits(lm, [text])[0] for text in texts], rtol=1e-4)
    assert (together > 0).all() and len(together) == len(texts)


def test_only_what_was_given_is_measured_and_too_long_a_text_is_named(lm: FrozenLM) -> None:
    plain = byte_references.measure(JUDGED)
    assert set(plain.columns()) == {"utf8_bytes", "zstd_bytes"} and plain.dictionary_bytes is None
    limit = lm.model.config.max_position_embeddings
    with pytest.raises(UserError, match=f"text 1 has {limit + 1} tokens, LM stub reads {limit}"):
        lm_bits(lm, ["short", "y" * limit])
