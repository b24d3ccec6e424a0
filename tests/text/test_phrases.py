"""Phrases of a sentence: three to twelve words, cut where a clause or a group of words begins."""

from __future__ import annotations

from lsm.text.phrases import FEWEST_WORDS, MOST_WORDS, phrases_of


def test_clauses_and_groups_are_found() -> None:
    text = "The decision came shortly after Stam claimed in his autobiography that Ferguson had tapped him up, and nobody believed him."
    found = phrases_of(text)
    assert "The decision came shortly" in found and "that Ferguson had tapped him up" in found and "and nobody believed him" in found
    assert all(FEWEST_WORDS <= len(phrase.split()) <= MOST_WORDS and phrase in text for phrase in found)
    assert len(found) == len(set(found))


def test_a_sentence_is_no_phrase_of_itself() -> None:
    assert phrases_of("The fox sleeps at home.") == []
    assert phrases_of("Yes.") == [] and phrases_of("") == [] and phrases_of("\n…") == []


def test_a_long_run_of_words_is_cut_evenly() -> None:
    found = phrases_of("word " * 30)
    assert found == [" ".join(["word"] * 10)]
