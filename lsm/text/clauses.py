"""Where an over-long sentence may be cut: at a clause boundary first, at a space next, inside a word only when nothing else is left."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

_CLOSERS = r"[\"'”’»)\]]*"
_WORDS = (
    r"(?:and|but|or|nor|so|yet|that|which|who|whom|whose|where|when|while|because|although|though|if|unless|until|since|as|than|whereas)\b"
)

# Tried in this order; a match ends where the next piece begins. Sentences come first: splitters keep a long quotation in one piece.
# Each pattern begins with one set of characters, which `re` scans for quickly, and looks back from there.
_TIERS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"[.!?…。！？](?:(?<=[。！？])|(?<=[^\W\d_]{{3}}[.!?…]){_CLOSERS}\s+)",
        rf"[;:；：—–-](?:(?<=[;:]){_CLOSERS}\s+|(?<=[；：—])\s*|(?<=--)-*\s*|(?<=\s[–-])\s+)",
        rf"[,，、](?:(?<=[，、])|(?<=,){_CLOSERS}\s+)",
        rf"\s(?={_WORDS})",
        r"\s+",
    )
)

_SMALLEST_SHARE = 0.4
"""A piece is at least this share of an even split, so that no tiny head or tail is left over."""

_JOINERS = frozenset("\u200c\u200d\ufe0e\ufe0f")


def split_clauses(text: str, cap_characters: int, fits: Callable[[str], bool] | None = None) -> Iterator[tuple[int, int]]:
    """Spans of the pieces of one sentence: each at most `cap_characters` long and, where given, accepted by `fits`.

    Spans are in order, never empty, without white space at either end; only white space stands between two of them.
    A single character that `fits` refuses is given as it is.

    Args:
        text: a sentence without white space at its ends.
        cap_characters: the longest piece, in code points.
        fits: a further limit, such as an encoder's tokens; called once for each piece that keeps to the cap.
    """
    pending = [(0, len(text))]
    while pending:
        start, stop = pending.pop()
        length = stop - start
        if length > cap_characters:
            end, following = _cut(text, start, stop, cap_characters)
            pending.append((following, stop))
            pending.append((start, end))
        elif fits is not None and length > 1 and not fits(text[start:stop]):
            end, following = _cut(text, start, stop, (length + 1) // 2)
            pending.append((following, stop))
            pending.append((start, end))
        else:
            yield start, stop


def _cut(text: str, start: int, stop: int, cap: int) -> tuple[int, int]:
    """The end of the first piece of `text[start:stop]` and the beginning of the rest."""
    length = stop - start
    even = length / -(-length // cap)
    middle = start + even
    first = start + max(1, int(even * _SMALLEST_SHARE))
    last = min(start + cap, stop - max(1, int(even * _SMALLEST_SHARE)))
    # A match ends behind its white space, so it may reach beyond a piece that is itself within the cap.
    for tier in _TIERS:
        best: tuple[int, int] | None = None
        for match in tier.finditer(text, first, min(last + 2, stop)):
            following = match.end()
            end = _stripped_end(text, start, following)
            if start < end <= start + cap and following < stop and (best is None or abs(end - middle) < abs(best[0] - middle)):
                best = end, following
        if best:
            return best[0], _next_character(text, best[1], stop)
    return _hard_cut(text, start, stop, min(start + cap, max(start + 1, round(middle))))


def _hard_cut(text: str, start: int, stop: int, wanted: int) -> tuple[int, int]:
    """A cut inside a run without spaces, moved back so that no letter is torn from its accents or an emoji from its parts."""
    cut = wanted
    while cut > start + 1 and wanted - cut < 16 and _continues(text, cut):
        cut -= 1
    if _continues(text, cut):
        cut = wanted
    end = _stripped_end(text, start, cut)
    return (end, _next_character(text, cut, stop)) if end > start else (cut, cut)


def _continues(text: str, index: int) -> bool:
    """Whether the character at `index` belongs to the one before it."""
    return text[index] in _JOINERS or text[index - 1] == "\u200d" or unicodedata.combining(text[index]) != 0


def _stripped_end(text: str, start: int, end: int) -> int:
    while end > start and text[end - 1].isspace():
        end -= 1
    return end


def _next_character(text: str, index: int, stop: int) -> int:
    while index < stop and text[index].isspace():
        index += 1
    return index
