"""Rules that change one "not", number, name or direction of an English sentence and leave its grammar standing.

A rule would rather pass over a sentence than spoil it: what it cannot be sure of (questions, idioms, "has" as a full verb) is left alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


def bag(words: str, mark: str | None = None) -> frozenset[str]:
    """The words of a list in a string."""
    return frozenset(words.split(mark))


TOKEN = re.compile(r"\w+(?:[.,'’]\w+)*")
"""What counts as one word: `isn't`, `3.5` and `1,000` are one each."""
NEGATIONS = bag("not no never none nor neither nothing nobody nowhere cannot without hardly")
_AUXILIARIES = bag("is was were are has have can could will would should did do does")
_MODALS = bag("can could will would should")
_PERFECT = bag("has have")
_NOUN_BEFORE = bag("a an the this that his her its their my your our of good free own")
"""After these, `will` and `can` are nouns."""
_FIXED_BEFORE = bag("as than so there's whether")
_FIXED_AFTER = bag("also already always still often only just even yet some something somebody someone both either rather better so too")
_POLARITY = bag("any anyone anything anybody anywhere ever either until yet whatsoever")
"""Words that a "not" may have licensed: without it the sentence breaks."""
_PARTICIPLES = bag(
    "been made become had done gone taken given seen found won held said come known led begun written shown lost built sent set put told "
    "met run brought kept got grown risen fallen spent paid chosen broken drawn driven worn spoken left"
)
_MONTHS = bag("January February March April June July August September October November December")
_DAYS = bag("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_TITLES = bag("Mr Mrs Ms Dr Sir Lord Lady President Senator King Queen Prince Princess General Captain Professor Judge Saint")
_PLACE_BEFORE = bag("in at near from to")
_NATIONS = ("ish", "ian", "ean", "can", "man", "ese", "nch", "iet")
_FOLLOWS = {"capital": " [A-Z]", "word": " [a-z]", "possessive": "['’]s"}
DIRECTIONS = {
    one: other
    for pair in bag(
        "north south|east west|northern southern|eastern western|northeast southeast|northwest southwest|left right|increase decrease|"
        "increases decreases|increased decreased|increasing decreasing|before after|above below|inside outside",
        "|",
    )
    for one, other in (pair.split(), pair.split()[::-1])
}
_THIS_CENTURY = 25
"""Years of this century that a text may speak of as past."""
_SIDES = bag("hand side arm leg eye ear foot knee shoulder wing bank corner lane wall flank edge half")
_IDIOMS = bag(
    "after all|before long|above all|look after|looks after|looked after|looking after|going after|go after|went after|named after|"
    "until after|only after|soon after|after another|ever after|year after|time after|day after",
    "|",
)


@dataclass(frozen=True)
class Change:
    """One word of a sentence and what takes its place; one of the two may be two words (`is`, `is not`)."""

    start: int
    stop: int
    new: str

    def apply(self, text: str) -> str:
        """The changed sentence."""
        return text[: self.start] + self.new + text[self.stop :]


@dataclass(frozen=True)
class Sample:
    """What the rules know of all sentences together."""

    names: dict[tuple[str, str, bool], list[str]]
    """Names by the context they stand in (see `_name_context`)."""
    lower_case: frozenset[str]
    """Words that occur without a capital: these are no names."""

    @classmethod
    def of(cls, sentences: Sequence[str]) -> Sample:
        """Collect names and words; equal sentences in equal order give an equal sample."""
        lower_case = frozenset(match[0] for text in sentences for match in TOKEN.finditer(text) if match[0].islower())
        names: dict[tuple[str, str, bool], dict[str, None]] = {}
        for text in sentences:
            for match in _names(text, lower_case):
                names.setdefault(_name_context(text, match), {})[match[0]] = None
        return cls({context: list(found) for context, found in names.items()}, lower_case)


def negate(text: str, sample: Sample, chance: random.Random) -> list[Change]:
    """Insert "not" after an auxiliary, or take it out again."""
    words = list(TOKEN.finditer(text))
    lower = [match[0].lower() for match in words]
    negations = [place for place, word in enumerate(lower) if word in NEGATIONS or word.endswith(("n't", "n’t"))]
    if "?" in text or len(negations) > 1:
        return []
    if not negations:
        return [_with_not(words[place]) for place in range(1, len(words) - 1) if _takes_not(text, words, place)]
    place = negations[0]
    adjacent = place + 1 < len(words) and text[words[place].end() : words[place + 1].start()] == " "
    if not adjacent or _POLARITY & set(lower) or lower[place + 1] in _FIXED_AFTER or lower[place + 1] == "to":
        return []
    if words[place][0] == "cannot" and place:
        return [Change(words[place].start(), words[place].end(), "can")]
    before = words[place - 1] if place > 1 else None  # an auxiliary that opens the sentence is a question or a command
    if before is None or words[place][0] != "not" or before[0] not in _AUXILIARIES or text[before.end() : words[place].start()] != " ":
        return []
    return [Change(before.start(), words[place].end(), before[0])]


def _takes_not(text: str, words: list[re.Match[str]], place: int) -> bool:
    word, before, after = words[place][0], words[place - 1][0].lower(), words[place + 1][0]
    spaced = text[words[place].end() : words[place + 1].start()] == " " and text[words[place - 1].end() : words[place].start()] == " "
    if word not in _AUXILIARIES or word in ("do", "does", "did") or not spaced:  # "did his work" is not "did not his work"
        return False
    if before in _FIXED_BEFORE or after.lower() in _FIXED_AFTER:
        return False
    if word in _MODALS:
        return before not in _NOUN_BEFORE and after.islower() and after not in _NOUN_BEFORE and after != "of"
    return word not in _PERFECT or after in _PARTICIPLES or after.endswith("ed")


def _with_not(match: re.Match[str]) -> Change:
    return Change(match.start(), match.end(), "cannot" if match[0] == "can" else f"{match[0]} not")


def renumber(text: str, sample: Sample, chance: random.Random) -> list[Change]:
    """Another number of as many digits; years keep their century, small numbers stay days of a month, one stays one (it has no plural)."""
    changes = []
    for match in re.finditer(r"(?<![\w.,:/\-–$€£#+])[1-9]\d*(?![\w:/\-–]|[.,]\d)", text):
        value, digits = int(match[0]), len(match[0])
        if value == 1 or digits > 9:
            continue
        low, high = 10 ** (digits - 1), 10**digits - 1
        if 1100 <= value <= 2099:
            low, high = value // 100 * 100, value // 100 * 100 + (_THIS_CENTURY if value <= 2000 + _THIS_CENTURY and value >= 2000 else 99)
        elif 10 <= value <= 31:
            low, high = 10, 28
        new = value
        while new in (value, 1):
            new = chance.randint(low, high)
        changes.append(Change(match.start(), match.end(), str(new)))
    return changes


def rename(text: str, sample: Sample, chance: random.Random) -> list[Change]:
    """Another name that stands in the same kind of place elsewhere in the sample; months and weekdays among themselves."""
    changes = []
    for match in _names(text, sample.lower_case):
        context = _name_context(text, match)
        others = [name for name in sample.names.get(context, []) if name not in text]
        if others:
            changes.append(Change(match.start(), match.end(), chance.choice(others)))
    return changes


def _names(text: str, lower_case: frozenset[str]) -> Iterator[re.Match[str]]:
    """Capitalised words within a sentence that are no common words with a capital, alone or two together: longer runs are titles."""
    for match in re.finditer(r"(?<![\w\-'’.])[A-Z][a-z]{2,}(?![\w\-]|\.\w)", text):
        before, after = text[: match.start()], text[match.end() :]
        opens = not before.strip(" \"'“‘(") or re.search(r"[.!?:\"“‘]\s*$", re.sub(r"\b(?:Mr|Mrs|Ms|Dr)\. $", " ", before))
        run = re.search(r"((?:[A-Z][\w.]*[ -])*)$", before), re.match(r"((?:[ -][A-Z]\w*)*)", after)
        around = [word for word in re.findall(r"\w+", " ".join(found[1] for found in run if found)) if word not in _TITLES]
        common = match[0] in _TITLES or any(word.lower() in DIRECTIONS for word in (match[0], *around))
        if not opens and len(around) <= 1 and not common and match[0].lower() not in lower_case:
            yield match


def _name_context(text: str, match: re.Match[str]) -> tuple[str, str, bool]:
    """Calendar class or the word before, with the ending of a nation; what follows; vowel first (a / an)."""
    before, after = next(iter(re.findall(r"([\w]+)\.? $", text[: match.start()])), ""), text[match.end() :]
    follows = next((name for name, sign in _FOLLOWS.items() if re.match(sign, after)), "stop")
    if match[0] in _MONTHS or match[0] in _DAYS:
        kind = "month" if match[0] in _MONTHS else "day"
    elif before in _TITLES or before[:1].isupper():
        kind = "title" if before in _TITLES else "capital"
    else:
        kind = before if before in _PLACE_BEFORE or before in ("the", "a", "an") else ""
    return kind + next((f" -{ending}" for ending in _NATIONS if match[0].endswith(ending)), ""), follows, match[0][0] in "AEIOU"


def redirect(text: str, sample: Sample, chance: random.Random) -> list[Change]:
    """The opposite direction, in space, time or amount."""
    changes = []
    for match in TOKEN.finditer(text):
        word = match[0].lower()
        new = DIRECTIONS.get(word)
        before, after = text[: match.start()].split()[-1:], TOKEN.findall(text[match.end() :])[:1]
        pair_before, pair_after = f"{''.join(before)} {word}".lower(), f"{word} {''.join(after)}".lower()
        if new is None or {pair_before, pair_after} & _IDIOMS or "-" in text[max(0, match.start() - 1) : match.end() + 1]:
            continue
        if word in ("left", "right") and not _is_a_side(text, match, before, after):
            continue
        if before and before[0].lower() in ("a", "an") and (word[0] in "aeiou") != (new[0] in "aeiou"):
            continue
        new = new.upper() if match[0].isupper() else new.capitalize() if match[0][0].isupper() else new
        changes.append(Change(match.start(), match.end(), new))
    return changes


def _is_a_side(text: str, match: re.Match[str], before: list[str], after: list[str]) -> bool:
    """Neither "he left" nor "a right to": a part of something with two, or `the right` and `turn left` at the end of a clause."""
    if after and after[0] in _SIDES and text[match.end()] == " ":
        return True
    return bool(before) and before[0] in ("the", "turn", "turned", "turns", "turning") and bool(re.match(r"[.,;)]|$", text[match.end() :]))


Rule = Callable[[str, Sample, random.Random], list[Change]]
RULES: dict[str, Rule] = {"negation": negate, "number": renumber, "name": rename, "direction": redirect}
