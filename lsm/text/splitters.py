"""The sentence splitters behind one signature: text → pieces that add up to it. sentencex by default, SaT as an extra."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

from lsm.errors import UserError, missing_extra

Splitter = Callable[[str], list[str]]
"""Cuts a paragraph into sentences, each with the white space that follows it; the pieces joined are the paragraph."""

SEGMENTERS = ("sentencex", "sat")
SAT_MODEL = "sat-3l-sm"

_WINDOW_CHARACTERS = 4096
"""sentencex drops a blank line at every 10 kB of a longer text and slows down on very long paragraphs, so it gets windows."""

_WIDE_SPACE = re.compile(r"[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PLAIN_BREAK = re.compile(r"[.!?…。！？][\"'”’»)\]]*\s+|[。！？]")


@cache
def load_splitter(segmenter: str, language: str) -> Splitter:
    """The splitter called `segmenter`.

    Raises:
        UserError: unknown name, or SaT without its extra.
    """
    if segmenter == "sentencex":
        return _sentencex_splitter(language)
    if segmenter == "sat":
        return _sat_splitter()
    raise UserError(f"segmenter {segmenter!r} is unknown; choose one of {', '.join(SEGMENTERS)}")


def _sentencex_splitter(language: str) -> Splitter:
    from sentencex import segment  # ty: ignore[missing-module-member]

    def window_pieces(text: str) -> list[str]:
        safe = text
        if not text.isascii():
            # sentencex 1.0 panics on "B\xa0. ": a capital, a white space of several bytes and a full stop. One for one, so spans stay.
            safe = _SURROGATE.sub("\ufffd", _WIDE_SPACE.sub(" ", text))
        try:
            pieces = segment(language, safe)
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            return _plain_pieces(text)
        if safe is text and sum(map(len, pieces)) == len(text):
            return pieces
        return _as_in(text, pieces) if sum(map(len, pieces)) == len(text) else _plain_pieces(text)

    def split(text: str) -> list[str]:
        if len(text) <= _WINDOW_CHARACTERS:
            return window_pieces(text)
        return list(_windowed(text, window_pieces))

    return split


def _windowed(text: str, window_pieces: Splitter) -> Iterator[str]:
    """Split a long paragraph window by window; the last sentence of a window, which may be cut short, begins the next one."""
    start, size = 0, _WINDOW_CHARACTERS
    while len(text) - start > size:
        complete = window_pieces(text[start : start + size])[:-1]
        # Where no sentence ends in a whole window, twice the window is tried: the cost stays linear.
        size = _WINDOW_CHARACTERS if complete else 2 * size
        for piece in complete:
            yield piece
            start += len(piece)
    yield from window_pieces(text[start:])


def _as_in(text: str, pieces: list[str]) -> list[str]:
    """The stretches of `text` that `pieces` of an equally long text stand for."""
    stretches, start = [], 0
    for piece in pieces:
        stretches.append(text[start : start + len(piece)])
        start += len(piece)
    return stretches


def _plain_pieces(text: str) -> list[str]:
    """Split after full stops, question and exclamation marks: what is left when a splitter fails on a text."""
    cuts = [0, *(match.end() for match in _PLAIN_BREAK.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if a < b]


def _sat_splitter() -> Splitter:
    """Segment any Text (Frohmann et al. 2024, arXiv:2406.16678) through wtpsplit-lite: slower, and needs no punctuation."""
    try:
        from wtpsplit_lite import SaT  # ty: ignore[import-not-found]
    except ImportError as error:
        raise missing_extra("wtpsplit-lite", "sat") from error
    try:
        model = SaT(SAT_MODEL)
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"segmenter sat: cannot load {SAT_MODEL} ({problem}); run once with network, or use sentencex") from error

    def split(text: str) -> list[str]:
        # Found again one after the other, because SaT may strip or change the white space around a sentence.
        cuts = [0]
        for sentence in model.split(text):
            bare = sentence.strip()
            found = text.find(bare, cuts[-1]) if bare else -1
            if found >= 0:
                cuts.append(found + len(bare))
        cuts = [*cuts[:-1], len(text)] if len(cuts) > 1 else [0, len(text)]
        return [text[a:b] for a, b in pairwise(cuts)]

    return split
