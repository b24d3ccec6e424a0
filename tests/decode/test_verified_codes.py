"""What is encoded with verification comes back, whatever text it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.assets import resolve
from lsm.codes.alphabet import Alphabet
from lsm.codes.superposition import SuperpositionEncoder
from lsm.decode.code_reader import PLAIN, CodeReader
from lsm.decode.verified import encode_verified
from lsm.lm.tokens import FolderTokens

odd = ["日本", "👩‍👩‍👧‍👦", "\r\n", "\x00", "<|im_end|>", "<s>", "\u200d", "e\u0301", "\ufffd"]
words = st.sampled_from([" the", " Fox", " ", "é", "1,234.5", "aaaa", *odd])
texts = st.one_of(st.text(max_size=60), st.lists(words, max_size=30).map("".join), st.integers(1, 300).map("ab".__mul__))


@pytest.fixture(scope="module", params=[(48, 8), (64, 4)], ids=str)
def reader(request: pytest.FixtureRequest) -> CodeReader:
    alphabet = Alphabet(FolderTokens(Path(resolve("smollm2-135m-instruct").path)))
    dims, bits = request.param
    return CodeReader(SuperpositionEncoder(alphabet.spec(dims=dims, bits=bits), alphabet))


def test_a_verified_text_reads_the_same_alone_and_in_any_company(reader: CodeReader) -> None:
    """Runs of one syllable meet ties, which rounding used to decide otherwise in another batch."""
    some = ["ab" * n for n in (136, 184, 239, 111)] + ["The harvest was good.", "1,234.5 " * 9]
    codes = encode_verified(reader.encoder, reader, some, PLAIN).codes
    for company in ([0, 1, 2, 3, 4, 5], [3], [5, 3], [3, 2, 0], [1, 2, 3, 3, 3, 0, 4, 5, 2]):
        reading = reader.read(codes.select(np.array(company)), PLAIN)
        assert reading.texts == [some[n] for n in company] and reading.certified_B.all()


@settings(max_examples=12, deadline=None)
@given(some=st.lists(texts, min_size=1, max_size=6))
def test_any_text_comes_back(reader: CodeReader, some: list[str]) -> None:
    verified = encode_verified(reader.encoder, reader, some, PLAIN)
    reading = reader.read(verified.codes, PLAIN)
    assert reading.texts == some and reading.certified_B.all()
