"""Inversion: hypotheses from every source at hand, then rounds of edits and rewriting, each judged by re-encoding it, within one budget.

After vec2text (Morris et al. 2023) in that a hypothesis is re-encoded, compared with the target and improved, the best kept; its trained
corrector, where there is none, is replaced by search. Without an adapter nothing has been trained for the encoder at all (`guided`).
What a round tries depends on the rounds before it and never on the limit: a smaller budget ends the same search earlier.
Shape letters: B targets, D vector width, P prefix positions, H hidden width of the LM, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lsm.decode.budget import EncoderBudget, Hypothesis
from lsm.decode.composing import Composer
from lsm.decode.correcting import Writer
from lsm.decode.decoders import PrefixDecoder, RetrievalDecoder
from lsm.decode.edits import Edit, Phrases, applied, compatible, ranked_edits
from lsm.decode.lexicon import Lexicon
from lsm.decode.phrase_store import PhraseStore
from lsm.decode.vectors import Encode, check_vectors, unit
from lsm.decode.wording import Reading, read
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM

_TARGETS_AT_ONCE = 16
_NEAR, _WRITTEN, _COMPOSED = 4, 4, 6
"""Neighbours, prefix-adapted sentences and composed sentences to begin with."""
_CORRECTED = 3
"""Hypotheses that a corrector gets before the first round of edits."""
_EDITS, _TOGETHER, _READ = 24, 6, 2
"""Edits a round, unions of them that are tried next, and how many of the nearest are read by the LM."""
_STRENGTH, _STRENGTH_WITH_PREFIX = 90.0, 50.0
_OVERSHOOT = 1.0
"""How far beyond the target a rewriting aims, in units of what its best hypothesis lacks."""
_LEAST_GAIN = 1e-3
_REWRITE_AT, _PATIENCE = 1, 2
"""Stale rounds after which a target is rewritten, and after which its search goes on no longer."""
DEFAULT_CALLS, DEFAULT_FLUENCY = 64, 0.002
_PHRASES = 32
_CONTEXT_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What hypotheses are made of."""

    encoder: dict[str, Any]
    """Fingerprint of the encoder."""
    encode: Encode
    lm: FrozenLM
    lexicon: Lexicon
    store: PhraseStore | None = None
    """Sentences to begin with."""
    phrases: PhraseStore | None = None
    """Phrases to stitch with."""
    prefix: PrefixDecoder | None = None
    """An adapter for the encoder; its LM is `lm`."""
    writer: Writer | None = None
    """A corrector for the encoder, with an LM of its own."""


@dataclass
class _Search:
    """One target's state."""

    best: Hypothesis | None = None
    reading: Reading | None = None
    score: float = -np.inf
    stale: int = 0
    """Rounds in a row that gained too little."""
    near: list[str] = field(default_factory=list)
    trail: list[tuple[int, str]] = field(default_factory=list)
    """Calls used so far and best text, after every round."""


class InversionDecoder:
    """Words a vector by searching for a text whose re-encoding comes near it."""

    def __init__(
        self, parts: Parts, *, name: str = "inversion", encoder_calls: int = DEFAULT_CALLS, fluency: float = DEFAULT_FLUENCY
    ) -> None:
        """
        Args:
            encoder_calls: most texts encoded for one vector.
            fluency: cosine that is given up for each nat by which a text surprises the LM more than prose does; 0 = cosine alone.
        """
        if encoder_calls < 1:
            raise UserError(f"--encoder-calls {encoder_calls}: must be at least 1")
        self.parts, self.limit, self.fluency, self.encoder = parts, encoder_calls, fluency, parts.encoder
        for store in (parts.store, parts.phrases):
            if store is not None:
                store.require_encoder(parts.encoder)
        self.name = name
        self.encoder_calls_per_sentence = float(encoder_calls)
        self.trails: list[list[tuple[int, str]]] = []
        """Of each vector of the last call: encoder calls used and best text so far, after every round."""
        self._composer = Composer(parts.lm, parts.lexicon)

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        return [texts[0] for texts in self.candidates(z_BD, 1, seed=seed)]

    def candidates(self, z_BD: np.ndarray, k: int, *, seed: int = 0) -> list[list[str]]:
        """The sentence that the search ends with, then whatever else came near."""
        check_vectors(z_BD, int(self.encoder["dim"]), self.encoder)
        found: list[list[str]] = []
        self.trails, used = [], 0
        for start in range(0, len(z_BD), _TARGETS_AT_ONCE):
            budget = EncoderBudget(self.parts.encode, z_BD[start : start + _TARGETS_AT_ONCE], self.limit)
            searches = self._search(budget, seed)
            for target, search in enumerate(searches):
                best = search.best.text if search.best else ""
                found.append(list(dict.fromkeys([best, *(one.text for one in budget.nearest(target))]))[:k])
                self.trails.append(search.trail)
            used += int(budget.used_B.sum())
        self.encoder_calls_per_sentence = used / max(1, len(z_BD))
        return found

    def _search(self, budget: EncoderBudget, seed: int) -> list[_Search]:
        searches = [_Search() for _ in budget.target_BD]
        nothing: list[dict[str, Edit]] = [{} for _ in searches]
        self._judge(budget, searches, budget.try_texts(self._beginnings(budget.target_BD, searches, seed)), nothing)
        if self.parts.writer:
            self._judge(budget, searches, budget.try_texts(self._corrected(budget)), nothing)
            for search in searches:  # edits come next, whatever that brought
                search.stale = 0
        while True:
            active = [n for n, one in enumerate(searches) if budget.left(n) and one.best and one.stale <= _PATIENCE]
            if not active:
                return searches
            edits: list[dict[str, Edit]] = [{} for _ in searches]
            rewriting = [n for n in active if searches[n].stale == _REWRITE_AT]
            for n in set(active) - set(rewriting):
                edits[n] = self._edits(budget, n, searches[n])
            wished: list[Sequence[str]] = [list(some) for some in edits]
            for n, texts in zip(rewriting, self._rewritten(budget.target_BD, searches, rewriting), strict=True):
                wished[n] = texts
            tried = budget.try_texts(wished)
            unions = [self._unions(one, some, hypotheses) for one, some, hypotheses in zip(searches, edits, tried, strict=True)]
            for hypotheses, more in zip(tried, budget.try_texts(unions), strict=True):
                hypotheses += more
            self._judge(budget, searches, tried, edits)

    def _beginnings(self, target_BD: np.ndarray, searches: list[_Search], seed: int) -> list[list[str]]:
        """First hypotheses of every target, the sources taking turns, so that a small budget sees all of them."""
        sources: list[list[list[str]]] = []
        if self.parts.store:
            near = RetrievalDecoder(self.parts.store).candidates(target_BD, _NEAR)
            for search, texts in zip(searches, near, strict=True):
                search.near = texts
            sources.append(near)
        if self.parts.prefix:
            sources.append(self.parts.prefix.candidates(target_BD, _WRITTEN, seed=seed))
        sources.append(self._composed(target_BD, [search.near for search in searches], _COMPOSED))
        return [_in_turn([source[n] for source in sources]) for n in range(len(target_BD))]

    def _corrected(self, budget: EncoderBudget) -> list[list[str]]:
        """What the corrector makes of each target's nearest hypotheses."""
        assert self.parts.writer is not None
        nearest = [budget.nearest(n)[:_CORRECTED] for n in range(len(budget.target_BD))]
        rows = [(n, one) for n, some in enumerate(nearest) for one in some if budget.left(n)]
        texts: list[list[str]] = [[] for _ in nearest]
        if rows:
            z_RD, own_RD = np.stack([budget.target_BD[n] for n, _ in rows]), np.stack([one.z_D for _, one in rows])
            for (n, _), text in zip(rows, self.parts.writer.write(z_RD, own_RD, [one.text for _, one in rows]), strict=True):
                texts[n].append(text)
        return texts

    def _composed(self, target_BD: np.ndarray, contexts: list[list[str]], width: int) -> list[list[str]]:
        """Sentences written towards the targets after a soft prefix, or else after sentences that say something like it."""
        prefix, lm = self.parts.prefix, self.parts.lm
        if prefix:
            prefix_BPH, bias = prefix.conditions(target_BD)
            return self._composer.compose(target_BD, prefix_BPH, strength=_STRENGTH_WITH_PREFIX, width=width, bias=bias)
        rows = [lm.tokens.encode(["\n".join(texts[::-1]) + "\n"])[0][-_CONTEXT_TOKENS:] if texts else [] for texts in contexts]
        composed: dict[int, list[str]] = {}
        for length in {len(row) for row in rows}:  # a target's LM reads its own context and nothing beside it
            group = [n for n, row in enumerate(rows) if len(row) == length]
            ids_BP = torch.tensor([[lm.tokens.end_id, *rows[n]] for n in group], device=lm.device)
            with torch.inference_mode():
                found = self._composer.compose(target_BD[group], lm.embed(ids_BP), strength=_STRENGTH, width=width)
            composed |= dict(zip(group, found, strict=True))
        return [composed[n] for n in range(len(rows))]

    def _rewritten(self, target_BD: np.ndarray, searches: list[_Search], rows: list[int]) -> list[list[str]]:
        """New sentences that aim beyond the targets, away from what their best hypotheses have already; corrections of these first."""
        if not rows:
            return []
        found = [one.best for one in (searches[n] for n in rows) if one.best is not None]
        assert len(found) == len(rows)
        own_BD, texts = np.stack([best.z_D for best in found]), [best.text for best in found]
        contexts = [[best.text, *searches[n].near] for n, best in zip(rows, found, strict=True)]
        aims_BD = target_BD[rows] + _OVERSHOOT * (target_BD[rows] - own_BD)
        composed = self._composed(unit(aims_BD), contexts, _COMPOSED)
        corrected = self.parts.writer.write(target_BD[rows], own_BD, texts) if self.parts.writer else [""] * len(rows)
        return [[first, *some] for first, some in zip(corrected, composed, strict=True)]

    def _edits(self, budget: EncoderBudget, n: int, search: _Search) -> dict[str, Edit]:
        assert search.best is not None and search.reading is not None
        target_D, phrases = budget.target_BD[n], Phrases([], np.zeros((0, budget.target_BD.shape[1]), np.float32))
        if self.parts.phrases:
            lacking_D = target_D - search.best.cosine * search.best.z_D + 0.5 * target_D
            rows, _, found_KD = self.parts.phrases.neighbours(lacking_D[None], _PHRASES)
            phrases = Phrases(self.parts.phrases.texts(rows), unit(found_KD))
        return ranked_edits(
            target_D, search.best, search.reading, self.parts.lexicon, phrases, _EDITS, lambda text: budget.tried(n, text)
        )  # fmt: skip

    def _unions(self, search: _Search, edits: dict[str, Edit], hypotheses: list[Hypothesis]) -> list[str]:
        """Texts with two or more of the edits that helped, the most helpful first."""
        if search.best is None or search.reading is None or not edits:
            return []
        helped = [one for one in hypotheses if one.cosine > search.best.cosine + _LEAST_GAIN]
        helped.sort(key=lambda one: -self._guess(search, one, edits))
        together: list[Edit] = []
        texts = []
        for one in helped:
            if compatible(together, edits[one.text]):
                together.append(edits[one.text])
                if len(together) > 1:
                    texts.append(applied(search.reading.pieces, together))
        return texts[:_TOGETHER]

    def _guess(self, search: _Search, one: Hypothesis, edits: dict[str, Edit]) -> float:
        """The score of a hypothesis before the LM has read it."""
        edit = edits.get(one.text)
        if edit is None or search.reading is None:
            return one.cosine
        return one.cosine - self.fluency * max(0.0, search.reading.surprise - edit.wording)

    def _judge(self, budget: EncoderBudget, searches: list[_Search], tried: list[list[Hypothesis]], edits: list[dict[str, Edit]]) -> None:
        """Let the LM read each target's most promising hypotheses and keep the best, old or new."""
        readable: list[tuple[int, Hypothesis]] = []
        for n, (search, hypotheses) in enumerate(zip(searches, tried, strict=True)):
            promising = [one for one in hypotheses if one.cosine > search.score]
            promising.sort(key=lambda one: -self._guess(search, one, edits[n]))
            readable += [(n, one) for one in promising[:_READ]]
        readings = read(self.parts.lm, [one.text for _, one in readable], self.parts.lexicon.first_W)
        before = [search.score for search in searches]
        for (n, one), reading in zip(readable, readings, strict=True):
            score = one.cosine - self.fluency * reading.surprise
            if score > searches[n].score:
                searches[n].best, searches[n].reading, searches[n].score = one, reading, score
        for n, (search, old) in enumerate(zip(searches, before, strict=True)):
            if tried[n] and search.best:
                search.stale = 0 if search.score > old + _LEAST_GAIN else search.stale + 1
                search.trail.append((int(budget.used_B[n]), search.best.text))
            elif not tried[n]:
                search.stale = _PATIENCE + 1  # nothing is left to try


def _in_turn(sources: Sequence[Sequence[str]]) -> list[str]:
    """Two of each source, two more of each, and so on."""
    longest = max(len(source) for source in sources)
    return [text for at in range(0, longest, 2) for source in sources for text in source[at : at + 2]]
