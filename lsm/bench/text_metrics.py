"""How near a decoded sentence is to the true one, in words and in bytes.

Letters: N sentences.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from zstandard import ZstdCompressionDict, ZstdCompressor

_BLEU_ORDER = 4
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
ZSTD_LEVEL = 19

TOKEN_F1 = "mean over sentences; bags of lower-cased words and single marks (\\w+|[^\\w\\s]): SQuAD's F1 with articles and marks kept"


@dataclass(frozen=True)
class TextScores:
    """Per-sentence scores of hypotheses against references; `bleu_counts_NM` sums up to corpus BLEU through `bleu_of`."""

    exact_match_N: np.ndarray
    token_f1_N: np.ndarray
    chrf_N: np.ndarray
    bleu_counts_NM: np.ndarray
    """Matching n-grams of order 1 … 4, n-grams of order 1 … 4, hypothesis length, reference length."""


def score_texts(hypotheses: Sequence[str], references: Sequence[str]) -> TextScores:
    """Score each hypothesis against its reference (both stripped of outer white space)."""
    assert len(hypotheses) == len(references)
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu, chrf = BLEU(effective_order=True), CHRF()
    exact, f1, chrfs, counts = [], [], [], []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        hypothesis, reference = hypothesis.strip(), reference.strip()
        exact.append(float(hypothesis == reference))
        f1.append(token_f1(hypothesis, reference))
        chrfs.append(chrf.sentence_score(hypothesis, [reference]).score)
        sentence = bleu.sentence_score(hypothesis, [reference])
        counts.append([*sentence.counts, *sentence.totals, sentence.sys_len, sentence.ref_len])
    width = 2 * _BLEU_ORDER + 2
    return TextScores(np.asarray(exact), np.asarray(f1), np.asarray(chrfs), np.asarray(counts, dtype=np.float64).reshape(-1, width))


def bleu_of(counts_M: np.ndarray) -> float:
    """Corpus BLEU (sacrebleu's formula and smoothing) of summed `bleu_counts_NM`; NaN of no text at all."""
    from sacrebleu.metrics.bleu import BLEU

    if counts_M[-1] == 0:
        return float("nan")
    numbers = [round(count) for count in counts_M.tolist()]
    correct, total = numbers[:_BLEU_ORDER], numbers[_BLEU_ORDER : 2 * _BLEU_ORDER]
    return BLEU.compute_bleu(correct, total, numbers[-2], numbers[-1], smooth_method="exp").score


def token_f1(hypothesis: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the bags of tokens (see `TOKEN_F1`), 0 … 1; two texts without tokens are equal."""
    ours, theirs = Counter(_WORD_OR_MARK.findall(hypothesis.lower())), Counter(_WORD_OR_MARK.findall(reference.lower()))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if ours or theirs else 1.0


def rouge_l(hypothesis: str, reference: str) -> float:
    """F-measure of the longest common subsequence of lower-case words (Lin 2004, tokens as in Google's rouge_score without stemming)."""
    ours, theirs = (re.findall(r"[a-z0-9]+", text.lower()) for text in (hypothesis, reference))
    length = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for place, other in enumerate(theirs, start=1):
            before, length[place] = length[place], before + 1 if word == other else max(length[place], length[place - 1])
    return 2 * length[-1] / (len(ours) + len(theirs)) if length[-1] else 0.0


def signatures() -> dict[str, str]:
    """What exactly was measured, for the report."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu, chrf = BLEU(), CHRF()
    # sacrebleu gives a signature only to a metric that has scored something.
    bleu.corpus_score(["a"], [["a"]])
    chrf.corpus_score(["a"], [["a"]])
    return {
        "bleu": f"corpus BLEU, sacrebleu {bleu.get_signature()}",
        "chrf": f"mean of sentences' chrF, sacrebleu {chrf.get_signature()}",
        "token_f1": TOKEN_F1,
        "zstd": f"level {ZSTD_LEVEL}, each sentence alone, frame header included; zstd_bytes_together = all sentences in one frame / n",
    }


def utf8_bytes(texts: Sequence[str]) -> np.ndarray:
    """UTF-8 length of each text, [N]."""
    return np.asarray([len(to_bytes(text)) for text in texts], dtype=np.float64)


def zstd_bytes(texts: Sequence[str], dictionary: ZstdCompressionDict | None = None) -> np.ndarray:
    """Length of each text compressed alone, [N], with a dictionary that the reader has too or without one."""
    compressor = _zstd(dictionary)
    return np.asarray([len(compressor.compress(to_bytes(text))) for text in texts], dtype=np.float64)


def zstd_bytes_together(texts: Sequence[str]) -> float:
    """Compressed length of all texts, one a line, in one frame, divided by their number."""
    return len(_zstd().compress(to_bytes("\n".join(texts)))) / len(texts)


def to_bytes(text: str) -> bytes:
    """UTF-8; a lone surrogate, which is no valid text, takes three bytes."""
    return text.encode("utf-8", "surrogatepass")


def _zstd(dictionary: ZstdCompressionDict | None = None) -> ZstdCompressor:
    from zstandard import ZstdCompressor

    return ZstdCompressor(level=ZSTD_LEVEL, dict_data=dictionary, write_dict_id=False)
