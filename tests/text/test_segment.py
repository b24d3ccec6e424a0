"""Sentences and gaps add up to the document, whatever the document; caps hold; cost is linear."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lsm.errors import UserError
from lsm.text import splitters
from lsm.text.segment import Sentence, segment

_ODD = [
    "a", "B", "Dr.", "1.", "word ", " ", "\n", "\n\n", "\r\n", "\r", "\t", "\x0c", "\x00", "\x1c", "\x85", "\xa0", "\u2028", "\u2029",
    "\u3000", "\u200b", "\ufeff", "\ud83d", "😀", "👩\u200d💻", "é", "e\u0301", "。", "…", ". ", "! ", "?", ", ", "; ",
    " and ", "—", "--", '"',
    "“", "”", "(", ")", "[1]", "# title\n", "- item\n",
]  # fmt: skip
odd_text = st.lists(st.sampled_from(_ODD), max_size=60).map("".join)


def check(text: str, cap_characters: int = 200, **options) -> list[Sentence]:
    lead, sentences = segment(text, cap_characters=cap_characters, **options)
    assert lead + "".join(s.text + s.gap for s in sentences) == text
    assert not lead.strip()
    previous = Sentence("", 0, len(lead), "", -1, 0)
    for sentence in sentences:
        assert sentence.text
        assert sentence.text == sentence.text.strip() == text[sentence.char_start : sentence.char_end]
        assert not sentence.gap.strip()
        assert len(sentence.text) <= cap_characters
        assert sentence.section >= previous.section
        assert sentence.part in (0, previous.part + 1)
        if sentence.part:
            assert sentence.section == previous.section
        previous = sentence
    return sentences


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=300), odd_text), st.integers(1, 220))
@example("B\xa0. ", 200)
@example("|. B\u2028\u3000. x", 200)
def test_sentences_and_gaps_are_the_document(text: str, cap_characters: int) -> None:
    check(text, cap_characters)


@settings(max_examples=60, deadline=None)
@given(odd_text, st.integers(5000, 9000))
def test_paragraphs_longer_than_a_window(text: str, length: int) -> None:
    check((text * (length // max(len(text), 1) + 1))[:length])


@settings(max_examples=100, deadline=None)
@given(odd_text, st.integers(1, 40))
def test_every_piece_fits(text: str, limit_bytes: int) -> None:
    def fits(piece: str) -> bool:
        return len(piece.encode("utf-8", "surrogatepass")) <= limit_bytes

    for sentence in check(text, fits=fits):
        assert fits(sentence.text) or len(sentence.text) == 1


def test_known_sentences() -> None:
    text = "  Dr. Smith arrived.\tHe met Ms. Jones 😀 at 3.5 miles. “Really?” she asked. 2. She did.\r\n\r\nNew paragraph.\n"
    lead, sentences = segment(text)
    assert lead == "  "
    assert [s.text for s in sentences] == [
        "Dr. Smith arrived.",
        "He met Ms. Jones 😀 at 3.5 miles.",
        "“Really?” she asked.",
        "2. She did.",
        "New paragraph.",
    ]
    assert [s.gap for s in sentences] == ["\t", " ", " ", "\r\n\r\n", "\n"]
    assert [s.section for s in sentences] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("text", ["", " ", "\n\n\t\xa0"])
def test_white_space_alone_has_no_sentences(text: str) -> None:
    assert segment(text) == (text, [])


def test_headings_are_their_own_sections() -> None:
    text = "# One\nText here. More.\n## Two\nText.\n\nAnd #no heading."
    assert [(s.section, s.text) for s in segment(text)[1]] == [
        (0, "# One"), (1, "Text here."), (1, "More."), (2, "## Two"), (3, "Text."), (4, "And #no heading."),
    ]  # fmt: skip


def test_long_sentences_are_cut_at_clauses() -> None:
    text = (
        "The first clause of this sentence is about as long as it has to be for the test to be worth something; "
        "the second clause, which holds a comma and the word and, follows after it and goes on for a good while too."
    )
    sentences = check(text, 150)
    assert [s.part for s in sentences] == [0, 1]
    assert sentences[0].text.endswith("something;")


def test_long_quotations_are_cut_at_their_sentences() -> None:
    quoted = "I said that we would go there together, you and him. " * 8
    for sentence in check(f'"{quoted}"'):
        assert sentence.text.endswith((".", '"'))


def test_no_tiny_tail() -> None:
    sentences = check("word " * 41, 200)
    assert len(sentences) == 2
    assert min(len(s.text) for s in sentences) > 60


def test_hard_cuts_keep_characters_whole() -> None:
    for unit in ("e\u0301", "👩\u200d💻"):
        for sentence in check(unit * 100, 7):
            assert sentence.text[0] == unit[0]


def test_lone_punctuation_stays_with_its_sentence() -> None:
    assert [s.text for s in check("He left. . . . She stayed.\n\n* * *\n\nNext.")][-2:] == ["* * *", "Next."]
    assert all(any(c.isalnum() for c in s.text) for s in check("It is so! ) He left. ” Then."))


def test_a_splitter_that_panics_is_replaced_by_plain_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(language: str, text: str) -> list[str]:
        raise PanicException

    monkeypatch.setattr("sentencex.segment", panic)
    splitters.load_splitter.cache_clear()
    try:
        assert [s.text for s in check("One. Two! (Three?) four")] == ["One.", "Two!", "(Three?)", "four"]
    finally:
        splitters.load_splitter.cache_clear()


@pytest.mark.parametrize("unit", ["a", "word ", "A. ", "\n", "—", '" ', "x\n", "# a\n", " ", "Some words here. "])
def test_cost_is_linear(unit: str) -> None:
    def seconds(characters: int) -> float:
        text = (unit * (characters // len(unit) + 1))[:characters]
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            segment(text)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(80_000) < 4 * 3 * seconds(20_000) + 0.05


def test_unknown_and_missing_segmenters() -> None:
    with pytest.raises(UserError, match="sentencex, sat"):
        segment("A text.", segmenter="punkt")
    try:
        import wtpsplit_lite  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"lsm\[sat\]"):
            segment("A text.", segmenter="sat")


def test_sat_pieces_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    class SaT:
        def __init__(self, name: str) -> None: ...

        def split(self, text: str) -> list[str]:
            return ["", *text.replace("\n", " ").split(" / ")]

    monkeypatch.setitem(sys.modules, "wtpsplit_lite", types.SimpleNamespace(SaT=SaT))
    splitters.load_splitter.cache_clear()
    try:
        assert len(check("no stops here / but two sentences\nof words", segmenter="sat")) >= 1
        assert check("one two / three four", segmenter="sat")[0].text == "one two"
    finally:
        splitters.load_splitter.cache_clear()
