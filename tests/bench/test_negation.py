"""The negation probe: rules on known sentences, verdicts on known texts, and a board whose numbers are known beforehand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.bench import negation
from lsm.bench.negation import KINDS, Pair, judge, measure, pairs
from lsm.bench.negation_rules import RULES, TOKEN, Sample

SENTENCES = [
    "The harbour is open to larger ships this winter.",
    "The council has approved the budget for another bridge.",
    "The farmers could not sell their harvest in autumn.",
    "Some people cannot read the older letters.",
    "The school opened in 1931 with 24 pupils and one teacher.",
    "The choir sang 17 songs before the dinner.",
    "Later the painter moved to Vienna with his daughter.",
    "The letters were sent from Dublin by an unknown writer.",
    "The meeting on Monday was chaired by Mr Brown of the union.",
    "The talks on Friday were opened by Mr Hayes of the council.",
    "The road turns left after the northern gate.",
    "Prices increased in the eastern provinces last spring.",
    "My father bought rings and pencils for the winner.",
    "A sister of ours wrote poems on spirals and borders, and sang on walks.",
]


def changed(kind: str, text: str, others: Sequence[str] = ()) -> set[str]:
    return {change.apply(text) for change in RULES[kind](text, Sample.of([text, *others]), random.Random(0))}


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("He is here.", {"He is not here."}),
        ("He is not here.", {"He is here."}),
        ("They can swim well.", {"They cannot swim well."}),
        ("They cannot swim well.", {"They can swim well."}),
        ("She has taken a walk.", {"She has not taken a walk."}),
        ("She has a garden.", set()),
        ("He did his work and does it well.", set()),
        ("He did not leave.", {"He did leave."}),
        ("Is he here?", set()),
        ("Is it here that it was found.", {"Is it here that it was not found."}),
        ("He is not here and never was.", set()),
        ("It does not contain any salt.", set()),
        ("It is not only cheap.", set()),
        ("It's clear that she isn't coming.", set()),
        ("His will was strong.", {"His will was not strong."}),
        ("That is what it is.", {"That is not what it is."}),
        ("It was, they say, cold.", set()),
    ],
)
def test_not_goes_in_and_out_where_grammar_allows(text: str, results: set[str]) -> None:
    assert changed("negation", text) == results


@pytest.mark.parametrize("text", ["It cost $45 or 3.5 or 1,200.", "Of 1 man and the 1990s, the 3rd at 10:30.", "Route A7 and 12-14."])
def test_what_is_not_a_plain_number_stays(text: str) -> None:
    assert changed("number", text) == set()


@given(st.integers(2, 99_999), st.integers(0, 99))
def test_numbers_keep_their_digits_and_years_their_century(value: int, seed: int) -> None:
    (change,) = RULES["number"](f"There were {value} birds.", Sample.of([]), random.Random(seed))
    assert len(change.new) == len(str(value)) and int(change.new) not in (value, 1)
    if 1100 <= value <= 2099:
        assert int(change.new) // 100 == value // 100
    if 10 <= value <= 31:
        assert 10 <= int(change.new) <= 28


def test_names_come_from_like_places_of_the_sample() -> None:
    assert changed("name", SENTENCES[6], SENTENCES) == set()  # `to Vienna with`: no other name after `to`
    assert changed("name", "He moved to Vienna with her.", ["She wrote to Lisbon about it."]) == {"He moved to Lisbon with her."}
    assert changed("name", "Yesterday Mr Brown spoke.", ["Then Mr Adams left.", "Then Mr Hayes left."]) == {"Yesterday Mr Hayes spoke."}
    assert changed("name", "They met on Monday in town.", ["Then came Friday in May."]) == {"They met on Friday in town."}
    assert changed("name", "He likes Apple more.", ["An apple a day.", "He likes Banana more."]) == set()
    assert changed("name", "We saw the Royal Northern Mounted Police.", SENTENCES) == set()


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("The Northern road.", {"The Southern road."}),
        ("He left the house.", set()),
        ("You have the right to leave.", set()),
        ("Turn the wheel with the left hand.", {"Turn the wheel with the right hand."}),
        ("Then turn right.", {"Then turn left."}),
        ("An increase was seen.", set()),
        ("After dinner they slept.", {"Before dinner they slept."}),
        ("He came after all.", set()),
        ("A north-facing room.", set()),
    ],
)
def test_directions_turn_round_but_idioms_and_verbs_stay(text: str, results: set[str]) -> None:
    assert changed("direction", text) == results


def test_pairs_are_deterministic_labelled_and_limited() -> None:
    found = pairs(SENTENCES, 3, 2, documents=[n // 2 for n in range(14)])
    assert found == pairs(SENTENCES, 3, 2, documents=[n // 2 for n in range(14)]) != pairs(SENTENCES, 4, 2)
    assert {kind: sum(pair.kind == kind for pair in found) for kind in KINDS} == dict.fromkeys(KINDS, 2)
    assert all(pair.document == SENTENCES.index(pair.text) // 2 for pair in found)
    assert len({(pair.kind, pair.text) for pair in found}) == len(found)
    for pair in found:
        ours, control = (TOKEN.findall(text) for text in (pair.text, pair.control))
        assert len(ours) == len(control) and sum(one != other for one, other in zip(ours, control, strict=True)) == 1
        assert negation._words(pair.control)[pair.word.split()[-1].casefold()] == 1, "the control keeps the word that the pair is about"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SENTENCES), min_size=1, unique=True), st.integers(0, 1000))
def test_each_sentence_of_a_pair_is_judged_as_itself(sentences: list[str], seed: int) -> None:
    for pair in pairs(sentences, seed, 5):
        assert pair.text != pair.other and pair.swapped().swapped() == pair
        assert (judge(pair.text, pair), judge(pair.other, pair)) == ("right", "other")
        assert judge(f"So {pair.text.lower()}", pair) == "right" and judge(f"So {pair.other.lower()}", pair) == "other"
        assert (judge(pair.text, pair.swapped()), judge("", pair), judge(f"{pair.text} {pair.other}", pair)) in {
            ("other", "neither", "neither"),
            ("other", "neither", "right"),  # a "not" anywhere negates
            ("other", "neither", "other"),
        }


def test_verdicts_on_known_texts() -> None:
    plain = Pair("negation", "The pier is open.", "The pier is not open.", "is", "is not", "", 0)
    assert [judge(text, plain) for text in ("The port is open.", "The port isn't open.", "It never opens.", "The port opens.")] == [
        "right", "other", "other", "neither",
    ]  # fmt: skip
    assert judge("The port is closed.", plain.swapped()) == "other" and judge("No pier is open.", plain.swapped()) == "right"
    number = Pair("number", "It has 24 rooms.", "It has 19 rooms.", "24", "19", "", 0)
    assert [judge(text, number) for text in ("24 rooms", "19 rooms", "240 rooms", "24 or 19", "It  has 24 rooms.")] == [
        "right", "other", "neither", "neither", "right",
    ]  # fmt: skip


def letters(texts: Sequence[str]) -> np.ndarray:
    return np.stack([np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256) for text in texts]).astype(np.float32)


def test_a_perfect_round_trip_a_guesser_and_a_blind_encoder() -> None:
    found = pairs(SENTENCES, 0, 3, documents=[n // 3 for n in range(14)])
    *kinds, overall = measure(found, letters, lambda texts: texts, resamples=50)
    assert [row["kind"] for row in kinds] == list(KINDS) and overall["kind"] == negation.ALL
    assert overall["n"] == len(found) == sum(row["n"] for row in kinds)
    for name in ("right", "both_right", "exact_match", "differ_float16"):
        assert overall[name] == 1 and overall["intervals"][name] == [1, 1]
    assert overall["other"] == overall["neither"] == 0 and 0 < overall["pair_cosine"] < 1

    guess = {pair.other: pair.text for pair in found}  # always words the first sentence of a pair
    overall = measure(found, letters, lambda texts: [guess.get(text, text) for text in texts])[-1]
    assert overall["right"] == overall["other"] == 0.5 and overall["both_right"] == 0

    blind = measure(found, lambda texts: np.ones((len(texts), 8), np.float32), None)[-1]
    assert blind["differ_float16"] == 0 and blind["closer_than_control"] == 0 and blind["pair_cosine"] == pytest.approx(1)
    assert "right" not in blind and measure([], letters, None) == []


def test_vectors_that_differ_below_float16_are_called_equal() -> None:
    pair = Pair("number", "It has 24 rooms.", "It has 19 rooms.", "24", "19", "It has 24 doors.", 0)
    vectors = {pair.text: [1.0, 0.0], pair.other: [1.0 + 1e-5, 0.0], pair.control: [0.0, 1.0]}
    (row, _) = measure([pair], lambda texts: np.array([vectors[text] for text in texts]), None)
    assert row["differ_float16"] == 0 and row["closer_than_control"] == 1 and row["control_cosine"] == 0
    assert row["intervals"]["pair_cosine"] == [None, None]  # one document cannot be resampled
