"""Written texts against their references: ROUGE, BLEU, METEOR, and what the reference costs, with intervals from resampling documents.

Letters: N texts, G documents, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsm.bench import intervals
from lsm.bench.text_metrics import bleu_of, utf8_bytes

ROUGES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


@dataclass(frozen=True)
class SummaryScores:
    """Scores of each text, 0 … 1; of several references the best one counts."""

    by_name: dict[str, np.ndarray]
    """rouge_1, rouge_2, rouge_l (F-measures) and meteor, each [N]."""
    bleu_counts_NM: np.ndarray
    """Sum up to corpus BLEU through `bleu_of`."""


def score_summaries(texts: Sequence[str], references: Sequence[Sequence[str]]) -> SummaryScores:
    """Score each text against its references."""
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    rouge, bleu, stemmer = RougeScorer(list(ROUGES.values()), use_stemmer=True), BLEU(effective_order=True), PorterStemmer()
    no_synonyms: Any = _NoSynonyms()
    by_name: dict[str, list[float]] = {name: [] for name in (*ROUGES, "meteor")}
    counts = []
    for text, own in zip(texts, references, strict=True):
        found = rouge.score_multi(list(own), text)
        for name, theirs in ROUGES.items():
            by_name[name].append(found[theirs].fmeasure)
        by_name["meteor"].append(meteor_score([one.split() for one in own], text.split(), stemmer=stemmer, wordnet=no_synonyms))
        sentence = bleu.sentence_score(text, list(own))
        counts.append([*sentence.counts, *sentence.totals, sentence.sys_len, sentence.ref_len])
    return SummaryScores({name: np.array(values) for name, values in by_name.items()}, np.array(counts, dtype=np.float64))


def summary_row(
    label: str,
    texts: Sequence[str],
    scores: SummaryScores,
    document_N: np.ndarray,
    drawn_RG: np.ndarray,
    *,
    nats: tuple[np.ndarray, np.ndarray] | None = None,
    n_bytes: float | None = None,
) -> dict[str, Any]:
    """One line of the scoreboard; `scores` in per cent as papers give them.

    Args:
        drawn_RG: from `intervals.draw`.
        nats: of each reference, or of the first ones, and its tokens.
        n_bytes: mean size of what the text was written from, for ROUGE-1 points by kilobyte.
    """
    estimates = {name: intervals.mean(100 * values_N, document_N, drawn_RG) for name, values_N in scores.by_name.items()}
    estimates["bleu"] = intervals.statistic(_by_document(scores.bleu_counts_NM, document_N, drawn_RG), drawn_RG, bleu_of)
    if nats is not None:
        sums_GM = _by_document(np.stack([np.asarray(part, dtype=np.float64) for part in nats], 1), document_N[: len(nats[0])], drawn_RG)
        estimates["nats_per_token"] = intervals.statistic(sums_GM, drawn_RG, lambda sums: sums[0] / sums[1] if sums[1] else np.nan)
    row: dict[str, Any] = {
        "label": label,
        "n": len(texts),
        "unique": len(set(texts)),
        "words": float(np.mean([len(text.split()) for text in texts])),
    }
    row |= intervals.as_row(estimates)
    if n_bytes:
        row |= {"bytes": n_bytes, "rouge_1_per_kilobyte": row["rouge_1"] / n_bytes * 1000}
    return row


def difference(label: str, ours: SummaryScores, theirs: SummaryScores, document_N: np.ndarray, drawn_RG: np.ndarray) -> dict[str, Any]:
    """Paired differences in points, with intervals: above 0 = ours is better."""
    pairs = {name: 100 * (ours.by_name[name] - theirs.by_name[name]) for name in ours.by_name}
    return {"label": label} | intervals.as_row({name: intervals.mean(d_N, document_N, drawn_RG) for name, d_N in pairs.items()})


def mean_bytes(texts: Sequence[str]) -> float:
    """Mean UTF-8 length."""
    return float(utf8_bytes(texts).mean())


def signatures() -> dict[str, str]:
    """What exactly was measured."""
    from importlib.metadata import version

    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU()
    bleu.corpus_score(["a"], [["a"]])
    return {
        "rouge": f"F-measure in per cent, mean over texts, best reference; rouge-score {version('rouge-score')} with stemmer",
        "bleu": f"corpus BLEU, sacrebleu {bleu.get_signature()}",
        "meteor": f"nltk {version('nltk')}, exact and stem matches only (no WordNet), in per cent",
    }


class _NoSynonyms:
    """Stands where METEOR looks for WordNet, which would be a download: no word has synonyms."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _by_document(values_NM: np.ndarray, document_N: np.ndarray, drawn_RG: np.ndarray) -> np.ndarray:
    sums_GM = np.zeros((drawn_RG.shape[1], values_NM.shape[1]))
    np.add.at(sums_GM, document_N, values_NM)
    return sums_GM
