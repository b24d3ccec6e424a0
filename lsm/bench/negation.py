"""The negation probe: pairs of sentences that differ in one "not", number, name or direction.

Two questions. Does the text come back with the right one? Both sentences of a pair go round; a decoder that guesses from the rest of the
sentence gets half of them. Does the vector tell them apart? The pair's cosine stands beside that of the same sentence with one other
content word exchanged at random: encoders that put "is" and "is not" nearer than that hide the difference where a decoder must find it.
Letters: N pairs, D vector width, R resamples.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lsm.bench import intervals
from lsm.bench.negation_rules import DIRECTIONS, NEGATIONS, RULES, TOKEN, Change, Sample, bag

Verdict = Literal["right", "other", "neither"]
KINDS = tuple(RULES)
ALL = "all"
_SHORTEST_CONTENT_WORD = 4
_ENDING = 3
_STOP_WORDS = bag(
    "about above after again also another because been before being below between both could does doing down during each even every from "
    "further have having here herself himself however into itself just many might more most much must only other over said same shall "
    "should since some such than that their them then there these they this those through under until very were what when where which "
    "while whom will with within would your upon"
)


@dataclass(frozen=True)
class Pair:
    """A sentence, its counterpart, and a control that differs as much in words and not in this way."""

    kind: str
    text: str
    other: str
    word: str
    """The words in which `text` differs from `other`, such as `is`."""
    other_word: str
    """Those of `other`, such as `is not`."""
    control: str
    """`text` with another content word exchanged for one of the sample with the same ending."""
    document: int
    """Number of the sentence's document: intervals resample documents."""

    def swapped(self) -> Pair:
        """The counterpart as the sentence."""
        return Pair(self.kind, self.other, self.text, self.other_word, self.word, self.control, self.document)


def pairs(sentences: Sequence[str], seed: int, per_kind: int, *, documents: Sequence[int] | None = None) -> list[Pair]:
    """At most `per_kind` pairs of each kind, each from a sentence of its own; fewer where the rules find no more.

    Args:
        sentences: held-out ones; names and control words are taken from them too.
        seed: of the order in which sentences are tried and of the words drawn; equal arguments, equal pairs.
        documents: number of each sentence's document, 0 … G−1; None makes every sentence a document of its own.
    """
    numbers = range(len(sentences)) if documents is None else documents
    assert len(numbers) == len(sentences)
    sample, words = Sample.of(sentences), _content_words(sentences)
    found = []
    for kind, rule in RULES.items():
        chance = random.Random(f"{seed} {kind}")
        order = chance.sample(range(len(sentences)), len(sentences))
        of_kind: list[Pair] = []
        seen: set[str] = set()
        for number in order:
            if len(of_kind) == per_kind:
                break
            text = sentences[number].strip()
            changes = [] if text in seen else [change for change in rule(text, sample, chance) if _is_told_apart(text, change)]
            seen.add(text)
            change = chance.choice(changes) if changes else None
            control = None if change is None else _control(text, change, words, chance)
            if change is not None and control is not None:
                word = text[change.start : change.stop]
                of_kind.append(Pair(kind, text, change.apply(text), word, change.new, control, numbers[number]))
        found += of_kind
    return found


def judge(decoded: str, pair: Pair) -> Verdict:
    """Which of the two sentences came back, by the words that tell them apart.

    right: the decoded text is the sentence, or holds its word and not the counterpart's; other: the other way round; neither: both or none.
    Of a "not" only one side has a word to find: the negated side is any negation, the plain side its auxiliary without any negation.
    """
    if " ".join(decoded.split()) == " ".join(pair.text.split()):
        return "right"
    if " ".join(decoded.split()) == " ".join(pair.other.split()):
        return "other"
    words = _words(decoded)
    if pair.kind == "negation":
        negated = any(word in NEGATIONS or word.endswith(("n't", "n’t")) for word in words)
        text_is_negated = len(pair.word) > len(pair.other_word)
        auxiliary = min(pair.word, pair.other_word, key=len)
        if not negated and auxiliary not in words:
            return "neither"
        return "right" if negated == text_is_negated else "other"
    own, others = words[pair.word.casefold()] > 0, words[pair.other_word.casefold()] > 0
    return "neither" if own == others else "right" if own else "other"


def measure(
    pairs: Sequence[Pair],
    encode: Callable[[Sequence[str]], np.ndarray],
    decode: Callable[[Sequence[str]], Sequence[str]] | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row a kind and one over all, with intervals from resampling documents.

    Columns: right, other, neither and exact_match are shares of all sentences sent round (two a pair), both_right of pairs; pair_cosine and
    control_cosine are means, closer_than_control the share of pairs nearer to each other than to the control, differ_float16 the share
    whose vectors still differ as stored.

    Args:
        encode: texts → vectors [N, D].
        decode: texts → texts, the whole round trip through any code and decoder; None asks the second question only.
    """
    if not pairs:
        return []
    texts, others = [pair.text for pair in pairs], [pair.other for pair in pairs]
    columns = _vector_columns(encode, texts, others, [pair.control for pair in pairs])
    if decode is not None:
        decoded = [text.strip() for text in decode([*texts, *others])]
        assert len(decoded) == 2 * len(pairs), f"{len(decoded)} texts came back of {2 * len(pairs)}"
        columns |= _text_columns(pairs, decoded)
    document_N = np.unique([pair.document for pair in pairs], return_inverse=True)[1]
    rows = []
    for kind in (*KINDS, ALL):
        inside_N = np.asarray([kind in (pair.kind, ALL) for pair in pairs])
        if not inside_N.any():
            continue
        local_N = np.unique(document_N[inside_N], return_inverse=True)[1]
        drawn_RG = intervals.draw(int(local_N.max()) + 1, resamples, seed)
        estimates = {name: intervals.mean(values_N[inside_N], local_N, drawn_RG) for name, values_N in columns.items()}
        rows.append({"kind": kind, "n": int(inside_N.sum()), "n_documents": int(local_N.max()) + 1} | intervals.as_row(estimates))
    return rows


def _text_columns(pairs: Sequence[Pair], decoded: Sequence[str]) -> dict[str, np.ndarray]:
    sent = [*pairs, *(pair.swapped() for pair in pairs)]
    verdicts_2N = np.asarray([judge(text, pair) for text, pair in zip(decoded, sent, strict=True)]).reshape(2, -1)
    exact_2N = np.asarray([text == pair.text for text, pair in zip(decoded, sent, strict=True)]).reshape(2, -1)
    columns = {verdict: (verdicts_2N == verdict).mean(0) for verdict in ("right", "other", "neither")}
    return columns | {"both_right": (verdicts_2N == "right").all(0).astype(float), "exact_match": exact_2N.mean(0)}


def _vector_columns(
    encode: Callable[[Sequence[str]], np.ndarray], texts: list[str], others: list[str], controls: list[str]
) -> dict[str, np.ndarray]:
    z_3ND = np.asarray(encode([*texts, *others, *controls]), dtype=np.float32).reshape(3, len(texts), -1)
    unit_3ND = z_3ND / np.maximum(np.linalg.norm(z_3ND, axis=2, keepdims=True), 1e-12)
    pair_N, control_N = (unit_3ND[0] * unit_3ND[1]).sum(1), (unit_3ND[0] * unit_3ND[2]).sum(1)
    stored_3ND = z_3ND.astype(np.float16)
    return {
        "pair_cosine": pair_N.astype(np.float64),
        "control_cosine": control_N.astype(np.float64),
        "closer_than_control": (pair_N > control_N).astype(float),
        "differ_float16": (stored_3ND[0] != stored_3ND[1]).any(1).astype(float),
    }


def _words(text: str) -> Counter[str]:
    return Counter(match[0].casefold() for match in TOKEN.finditer(text))


def _is_told_apart(text: str, change: Change) -> bool:
    """Whether the words that change occur once in their sentence and not in the other: else nothing is seen in the words."""
    before, after = _words(text), _words(change.apply(text))
    gone, come = before - after, after - before
    return all(before[word] == 1 for word in gone) and all(after[word] == 1 for word in come) and (gone.total() + come.total()) in (1, 2)


def _content_words(sentences: Sequence[str]) -> dict[str, list[str]]:
    """Lower-case content words of the sample by their last letters, which carry most of English inflection."""
    words: dict[str, dict[str, None]] = {}
    for text in sentences:
        for match in TOKEN.finditer(text):
            if _is_content(match[0]):
                words.setdefault(match[0][-_ENDING:], {})[match[0]] = None
    return {ending: list(found) for ending, found in words.items()}


def _is_content(word: str) -> bool:
    plain = len(word) >= _SHORTEST_CONTENT_WORD and word.isalpha() and word.islower()
    return plain and word not in _STOP_WORDS and word not in NEGATIONS and word not in DIRECTIONS


def _is_free(text: str, match: re.Match[str], change: Change) -> bool:
    """Neither part of the change nor of a word with a hyphen."""
    hyphened = "-" in text[max(0, match.start() - 1) : match.end() + 1]
    return not hyphened and (match.end() <= change.start or match.start() >= change.stop)


def _control(text: str, change: Change, words: dict[str, list[str]], chance: random.Random) -> str | None:
    """`text` with one content word outside of the change exchanged; None when there is none to exchange."""
    places = [m for m in TOKEN.finditer(text) if _is_content(m[0]) and _is_free(text, m, change)]
    chance.shuffle(places)
    for match in places:
        others = [word for word in words.get(match[0][-_ENDING:], []) if word not in text]
        if others:
            return Change(match.start(), match.end(), chance.choice(others)).apply(text)
    return None
