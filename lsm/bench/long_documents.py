"""How a long continuation reads, in numbers: repetition, drift, likelihood under a reader, and how near its sentences are to their plan.

Letters: G documents, S sentences read before, N sentences written, D vector width, T tokens, M real sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lsm.bench import drift, intervals
from lsm.bench.evaluation import MODEL
from lsm.decode.vectors import unit
from lsm.lm.tokens import opening_ids

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

_WORD = re.compile(r"\w+")
_REPEATED = 4
_DISTINCT = (1, 2, 3)
_READ_TOKENS, _JUDGED_TOKENS = 1024, 1024
"""A reader judges so many tokens at once, with at least so many before them where there are so many."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One document's continuation by one system."""

    read: Sequence[str]
    """The sentences that were there."""
    texts: Sequence[str]
    """The sentences written."""
    z_ND: np.ndarray
    """Their encodings."""
    planned_ND: np.ndarray | None = None
    """The plan of each, where there was one."""
    nats: float | None = None
    """Surprise of the whole continuation for the reader."""
    n_tokens: int = 0
    """Tokens that it is summed over."""


@dataclass
class _Counts:
    """Numerator and denominator of a share, of each document."""

    pairs: list[tuple[float, float]] = field(default_factory=list)

    def estimate(self, drawn_RG: np.ndarray) -> intervals.Estimate:
        counts_G2 = np.asarray(self.pairs, dtype=np.float64)
        return intervals.statistic(counts_G2, drawn_RG, lambda sums: sums[0] / sums[1] if sums[1] else np.nan)


def measure(written: Sequence[Written], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """One row of the table: shares over all documents' continuations, with 95 % intervals from resampling documents.

    `repeated_4grams`: word 4-grams that stood in the same continuation before. `said_before`: sentences that were written or read before
    (letters and digits compared). `distinct_n`: different word n-grams over all, each document by itself; falls as a text grows, so compare
    equal lengths. `nats_per_token` under a reader, where there is one. `plan_cosine`: of each sentence's encoding and its plan.
    """
    shares: dict[str, _Counts] = {}

    def add(name: str, numerator: float, denominator: float) -> None:
        shares.setdefault(name, _Counts()).pairs.append((numerator, denominator))

    for one in written:
        words = [word.lower() for text in one.texts for word in _WORD.findall(text)]
        grams = ngrams(words, _REPEATED)
        add("repeated_4grams", len(grams) - len(set(grams)), len(grams))
        add("said_before", n_said_before(one.read, one.texts), len(one.texts))
        for n in _DISTINCT:
            add(f"distinct_{n}", len(set(ngrams(words, n))), len(ngrams(words, n)))
        add("words_per_sentence", len(words), len(one.texts))
        if all(other.planned_ND is not None for other in written):
            assert one.planned_ND is not None
            add("plan_cosine", float((unit(one.planned_ND) * unit(one.z_ND)).sum()), len(one.texts))
        if all(other.nats is not None for other in written):
            assert one.nats is not None
            add("nats_per_token", one.nats, one.n_tokens)
    drawn_RG = intervals.draw(len(written), resamples, seed)
    about = {"n_documents": len(written), "n_sentences": sum(len(one.texts) for one in written)}
    return about | intervals.as_row({name: counts.estimate(drawn_RG) for name, counts in shares.items()})


def drift_rows(
    written: Sequence[Written], real_GND: Sequence[np.ndarray], read_GSD: np.ndarray, real_MD: np.ndarray, *, is_real: bool, **options: int
) -> list[dict[str, Any]]:
    """`lsm.bench.drift.measure` of the encodings of what was written, over as many sentences as every continuation has."""
    n = min(len(one.texts) for one in written)
    if n == 0:
        return []
    z_GND = np.stack([unit(one.z_ND[:n]) for one in written])
    ways = {drift.REAL: np.stack([unit(z_ND[:n]) for z_ND in real_GND]), MODEL: z_GND}
    wanted = drift.REAL if is_real else MODEL
    return [row for row in drift.measure(drift.Rollouts(read_GSD, ways, real_MD), **options) if row["way"] == wanted]


@torch.inference_mode()
def surprise(lm: FrozenLM, read: Sequence[str], texts: Sequence[str]) -> tuple[float, int]:
    """Nats of `texts` for an LM that has read `read` and then what it judges, as far back as 1,024 tokens at least; and how many tokens."""
    before, after = lm.tokens.encode([" ".join(read) + " ", " ".join(texts)])
    starts = opening_ids(lm.tokens)
    window = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None) or _READ_TOKENS + _JUDGED_TOKENS
    at_once = min(_JUDGED_TOKENS, window // 2)
    back = min(_READ_TOKENS, window - at_once) - len(starts)
    ids, nats = [*before, *after], 0.0
    first = len(before)
    for start in range(first, len(ids), at_once):
        stop = min(start + at_once, len(ids))
        context = torch.tensor([starts + ids[max(0, start - back) : start]], device=lm.device)
        own = torch.tensor([ids[start:stop]], device=lm.device)
        nats += float(lm.prefix_loss(lm.embed(context), own, torch.ones_like(own, dtype=torch.bool))[0]) * (stop - start)
    return nats, len(ids) - first


def n_said_before(read: Sequence[str], texts: Sequence[str]) -> int:
    """Sentences of `texts` that were read or written before."""
    said = {_key(text) for text in read}
    count = 0
    for text in texts:
        count += _key(text) in said
        said.add(_key(text))
    return count


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of n words."""
    return list(zip(*(words[k:] for k in range(n)), strict=False))


def _key(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
