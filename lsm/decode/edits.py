"""Small changes to a hypothesis, ranked before any is encoded: by what they should do to its vector and by what the LM expects there.

Shape letters: P pieces (words and marks) of a text, W words of the lexicon, D vector width, K phrases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lsm.decode.budget import Hypothesis
from lsm.decode.lexicon import CONTENT_WEIGHT, Lexicon
from lsm.decode.wording import ORDINARY, Reading

_NAT = 0.002
"""What a nat of log-probability weighs against a cosine, when edits are ranked."""
_UNKNOWN, _WITHIN_PHRASE = -10.0, -4.0
"""Log-probability of a word that the lexicon lacks, and of each word of a phrase after its first."""
_KINDS = {"replace": 16, "insert": 10, "delete": 6, "stitch": 10}
"""Most edits of each kind among those that are tried together."""
_AT_ONE_PLACE, _OF_ONE_WORD = 3, 4
_SPANS = (0, 2, 3, 4, 5, 6, 8)
"""Pieces that a phrase may take the place of."""


class Edit(NamedTuple):
    """Pieces `start` to `stop` become `text`."""

    start: int
    stop: int
    text: str
    kind: str
    gain: float = 0.0
    """In cosine, as the lexicon guesses it."""
    wording: float = 0.0
    """How much less the text surprises (`Reading.surprise`), in nats, as far as what stands before tells."""

    @property
    def score(self) -> float:
        """What edits are ranked by."""
        return self.gain + _NAT * self.wording


class Phrases(NamedTuple):
    """Phrases to stitch with, from a store."""

    texts: list[str]
    z_KD: np.ndarray
    """Their vectors, unit length."""


def applied(pieces: Sequence[str], edits: Sequence[Edit]) -> str:
    """The text after edits that do not overlap; it begins with a capital if the text did."""
    kept = list(pieces)
    for edit in sorted(edits, reverse=True):
        replaced = kept[edit.start] if edit.start < edit.stop else " "
        space = replaced[: len(replaced) - len(replaced.lstrip())]
        kept[edit.start : edit.stop] = [space + edit.text] if edit.text else []
    text = "".join(kept).strip()
    return text[:1].upper() + text[1:] if pieces and pieces[0].strip()[:1].isupper() else text


def compatible(edits: Sequence[Edit], edit: Edit) -> bool:
    """Whether `edit` can be made together with `edits`: elsewhere in the text, and with another word."""
    return all((edit.stop < one.start or edit.start > one.stop) and (not edit.text or edit.text != one.text) for one in edits)


def ranked_edits(
    target_D: np.ndarray, hypothesis: Hypothesis, reading: Reading, lexicon: Lexicon, phrases: Phrases, n: int, tried: Callable[[str], bool]
) -> dict[str, Edit]:
    """The n most promising edits by the text that they make, of several kinds and places; what was tried before is left out."""
    wanted_D = target_D - hypothesis.cosine * hypothesis.z_D  # the way up: the gradient of the cosine
    draft = _Draft(reading, lexicon, lexicon.z_WD @ wanted_D)
    pool = [*draft.replacements(4 * n), *draft.insertions(2 * n), *draft.deletions(), *draft.stitches(phrases, phrases.z_KD @ wanted_D)]
    chosen: dict[str, Edit] = {}
    count: Counter[object] = Counter()
    for edit in sorted(pool, key=lambda one: (-one.score, one)):
        places = [(edit.kind, edit.start), edit.text] if edit.text else [(edit.kind, edit.start)]
        if count[edit.kind] >= _KINDS[edit.kind] or count[places[0]] >= _AT_ONE_PLACE or count[places[-1]] >= _OF_ONE_WORD:
            continue
        text = applied(reading.pieces, [edit])
        if text in chosen or tried(text) or text == hypothesis.text:
            continue
        chosen[text] = edit
        count.update([edit.kind, *places])
        if len(chosen) == n:
            break
    return chosen


class _Draft:
    """A text with the gain in cosine that a linear guess gives each of its words and each word that might come in."""

    def __init__(self, reading: Reading, lexicon: Lexicon, gain_W: np.ndarray) -> None:
        self.pieces, self.lexicon = reading.pieces, lexicon
        bare = [piece.strip() for piece in reading.pieces]
        place_P = np.asarray([lexicon.place(piece) for piece in bare], dtype=np.int64)
        sum_D = lexicon.z_WD[place_P[place_P >= 0]].sum(0)
        gain_W = gain_W / max(1.0, float(np.linalg.norm(sum_D)))  # the longer the text, the less a word turns its vector
        self.scale = 1.0 / max(1.0, float(np.linalg.norm(sum_D)))
        self.gain_P = np.where(place_P >= 0, gain_W[place_P], 0.0) if len(gain_W) else np.zeros(len(bare))
        self.gain_W = gain_W.copy()
        self.gain_W[[place for place in place_P if place >= 0 and lexicon.weight_W[place] > CONTENT_WEIGHT]] = -1.0  # said already
        self.is_word_P = np.asarray([piece[:1].isalnum() for piece in bare], dtype=bool)
        self.piece_P, self.expected_PW = reading.piece_P, reading.expected_PW.astype(np.float32)
        self.place_P = place_P

    def replacements(self, n: int) -> list[Edit]:
        """One word for another."""
        gain_PW = np.where(self.is_word_P[:, None], self.gain_W[None] - self.gain_P[:, None], -np.inf)
        wording_PW = self.expected_PW[:-1] - self.piece_P[:, None]
        return self._best(gain_PW, wording_PW, n, "replace")

    def insertions(self, n: int) -> list[Edit]:
        """One word more."""
        return self._best(np.repeat(self.gain_W[None], len(self.pieces) + 1, axis=0), self.expected_PW + ORDINARY, n, "insert")

    def deletions(self) -> list[Edit]:
        """Up to six pieces fewer; what stands last stays."""
        edits = []
        for start in range(len(self.pieces) - 1):
            for stop in range(start + 1, min(start + 6, len(self.pieces) - 1) + 1):
                wording = self._seam(start, stop) - self.piece_P[start : stop + 1].sum() - ORDINARY * (stop - start)
                edits.append(Edit(start, stop, "", "delete", float(-self.gain_P[start:stop].sum()), float(wording)))
        return edits

    def stitches(self, phrases: Phrases, gain_K: np.ndarray) -> list[Edit]:
        """A stored phrase in the place of some pieces, or between two."""
        edits = []
        for text, gain in zip(phrases.texts, gain_K.tolist(), strict=True):
            first = self.lexicon.place(text.split()[0])
            opens_P = self.expected_PW[:, first] if first >= 0 else np.full(len(self.pieces) + 1, _UNKNOWN)
            for start in np.argsort(-opens_P, kind="stable")[:6].tolist():
                for span in _SPANS:
                    stop = start + span
                    if stop < len(self.pieces):
                        gained = gain * self.scale - float(self.gain_P[start:stop].sum())
                        wording = float(opens_P[start] - self.piece_P[start:stop].sum()) + _WITHIN_PHRASE * text.count(" ")
                        wording += ORDINARY * (text.count(" ") + 1 - span)
                        edits.append(Edit(start, stop, text, "stitch", gained, wording))
        return edits

    def _best(self, gain_PW: np.ndarray, wording_PW: np.ndarray, n: int, kind: str) -> list[Edit]:
        """The n highest scores as edits of one word."""
        flat = (gain_PW + _NAT * wording_PW).ravel()
        n = min(n, len(flat))
        top = np.argpartition(-flat, n - 1)[:n] if n else np.zeros(0, dtype=np.int64)
        edits = []
        for start, word in zip(*np.divmod(top, max(1, gain_PW.shape[1])), strict=True):
            gain, wording = float(gain_PW[start, word]), float(wording_PW[start, word])
            if np.isfinite(gain):
                edits.append(Edit(int(start), int(start) + (kind == "replace"), self.lexicon.words[word], kind, gain, wording))
        return edits

    def _seam(self, start: int, stop: int) -> float:
        """Log-probability of piece `stop` right after piece `start` − 1, as far as the lexicon knows it."""
        place = self.place_P[stop]
        return float(self.expected_PW[start, place]) if place >= 0 else min(_UNKNOWN, float(self.piece_P[stop]))
