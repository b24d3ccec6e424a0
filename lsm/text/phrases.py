"""The phrases of a sentence: its clauses, and chunks of a few words, for a store that is searched for pieces to stitch with."""

from __future__ import annotations

import re

FEWEST_WORDS, MOST_WORDS = 3, 12
"""Length of a phrase in words."""

_CLAUSE_END = re.compile(r"[,;:…—](?=\s)|\s[–—-]+(?=\s)|(?<=\w)[.!?](?=\s)|\s\(|\)(?=\s)")
# A chunk begins at a small word, so that what is cut off is a whole prepositional or subordinate group.
_STARTER = re.compile(
    r"about|after|against|although|among|and|around|as|at|because|before|between|but|by|during|for|from|if|in|into|near|of|on|or|over|since"
    r"|than|that|through|to|under|until|upon|when|where|which|while|who|whose|with|within|without",
    re.IGNORECASE,
)
_EDGES = ' \t\n\r,;:…—–-.!?()[]"“”'


def phrases_of(sentence: str) -> list[str]:
    """Distinct phrases of 3 to 12 words: every clause short enough, then chunks of the longer ones; none is the whole sentence."""
    found: dict[str, None] = {}
    bare = sentence.strip(_EDGES)
    for clause in _CLAUSE_END.split(sentence):
        words = clause.strip(_EDGES).split()
        for chunk in [words, *_chunks(words)]:
            phrase = " ".join(chunk).strip(_EDGES)
            if FEWEST_WORDS <= len(chunk) <= MOST_WORDS and phrase != bare:
                found[phrase] = None
    return list(found)


def _chunks(words: list[str]) -> list[list[str]]:
    """`words` cut before small words into pieces of at least three words; a piece longer than twelve is cut evenly."""
    pieces: list[list[str]] = [[]]
    for place, word in enumerate(words):
        if _STARTER.fullmatch(word) and len(pieces[-1]) >= FEWEST_WORDS and len(words) - place >= FEWEST_WORDS:
            pieces.append([])
        pieces[-1].append(word)
    out = []
    for piece in pieces:
        n = -(-len(piece) // MOST_WORDS)
        out += [piece[len(piece) * part // n : len(piece) * (part + 1) // n] for part in range(n)]
    return out
