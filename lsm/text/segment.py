"""Text → sentences with exact spans: what stands before, in and between the sentences adds up to the text, character for character."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from lsm.text.clauses import split_clauses
from lsm.text.splitters import Splitter, load_splitter

DEFAULT_CAP_CHARACTERS = 200
"""Longest sentence by default; what is longer is split at clause boundaries."""

_SECTION_BREAK = re.compile(r"(?:\n[^\S\n]*\n|\r\r|\u2029)\s*")
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+[^\s][^\n]*\n?", re.MULTILINE)
_WORD_CHARACTER = re.compile(r"[^\W_]")
_LONGEST_FRAGMENT = 6
_ENUMERATOR = re.compile(r"[(\[]?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,4})[.)\]]+")
_NEVER_LAST = (" Ms.", " Mx.", " Ft.", " Vol.", " vol.", " Ch.", " ch.", " approx.")
"""Abbreviations that sentencex takes for the end of a sentence; what follows them is joined again."""


class Sentence(NamedTuple):
    """One sentence, or one piece of an over-long sentence, of a document."""

    text: str
    """Never empty, without white space at either end; equals `document[char_start:char_end]`."""
    char_start: int
    """In code points of the document."""
    char_end: int
    gap: str
    """The white space between this sentence and the next one (or the document's end)."""
    section: int
    """Number of the paragraph or heading that it stands in, from 0."""
    part: int
    """0 for a whole sentence or the first piece of an over-long one, 1, 2 … for later pieces."""


def segment(
    text: str,
    *,
    language: str = "en",
    cap_characters: int = DEFAULT_CAP_CHARACTERS,
    fits: Callable[[str], bool] | None = None,
    segmenter: str = "sentencex",
) -> tuple[str, list[Sentence]]:
    """Split a document into sentences.

    Args:
        text: any text; sections end at blank lines and around Markdown headings, and no sentence crosses one.
        language: two-letter code for the rules of sentencex (SaT needs none).
        cap_characters: sentences longer than this are split at clause boundaries.
        fits: a further limit such as an encoder's tokens: pieces that it refuses are split again.
        segmenter: `sentencex` or `sat` (needs the extra `sat`), see `lsm.text.splitters`.

    Returns:
        The white space before the first sentence, and the sentences:
        `lead + "".join(s.text + s.gap for s in sentences) == text`.

    Raises:
        UserError: the segmenter is unknown or not installed.
    """
    assert cap_characters >= 1
    splitter = load_splitter(segmenter, language)
    spans: list[tuple[int, int, int, int]] = []
    for section, (start, stop) in enumerate(_sections(text)):
        for begin, end in _sentence_spans(text, start, stop, splitter):
            if end - begin <= cap_characters and (fits is None or fits(text[begin:end])):
                spans.append((begin, end, section, 0))
                continue
            pieces = split_clauses(text[begin:end], cap_characters, fits)
            spans.extend((begin + a, begin + b, section, part) for part, (a, b) in enumerate(pieces))
    if not spans:
        return text, []
    next_starts = [span[0] for span in spans[1:]] + [len(text)]
    sentences = [
        Sentence(text[begin:end], begin, end, text[end:following], section, part)
        for (begin, end, section, part), following in zip(spans, next_starts, strict=True)
    ]
    return text[: spans[0][0]], sentences


def _sections(text: str) -> list[tuple[int, int]]:
    """Spans of the paragraphs and headings; what lies between them is white space."""
    cuts = [0]
    for match in _SECTION_BREAK.finditer(text):
        cuts.append(match.end())
    cuts.append(len(text))
    if "#" in text:
        for match in _HEADING.finditer(text):
            cuts += match.span()
        cuts.sort()
    return [(a, b) for a, b in pairwise(cuts) if a < b and not text[a:b].isspace()]


def _sentence_spans(text: str, start: int, stop: int, splitter: Splitter) -> list[tuple[int, int]]:
    """Spans of the sentences of one section, without the white space around them."""
    spans: list[tuple[int, int]] = []
    position, goes_on = start, False
    for piece in splitter(text[start:stop]):
        bare = piece.rstrip()
        end = position + len(bare)
        begin = end - len(bare.lstrip())
        position += len(piece)
        short = end - begin <= _LONGEST_FRAGMENT
        if begin == end:
            continue
        # A lone bracket, quote or dash says nothing by itself: it stays with the sentence before it.
        if goes_on or (short and spans and not _WORD_CHARACTER.search(text, begin, end)):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
        goes_on = bare.endswith(_NEVER_LAST) or (short and _ENUMERATOR.fullmatch(text, begin, end) is not None)
    assert position == stop, "a splitter must return pieces that add up to its text"
    return spans
