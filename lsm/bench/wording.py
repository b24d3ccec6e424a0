"""What predicted vectors say once they are worded: text beside the true next sentence, and how much it has to do with what was read.

Letters: N places, M texts at a place, S sentences of a document, D vector width, T tokens, H hidden width of the LM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm.bench import intervals
from lsm.bench.judged import Documents
from lsm.bench.next_sentence import Predictor
from lsm.bench.text_metrics import rouge_l, score_texts
from lsm.decode.decoders import Decoder
from lsm.decode.vectors import Encode, unit
from lsm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lsm.lm.frozen import FrozenLM

TRUTH, TRUE_VECTOR, ELSEWHERE = "the true sentence", "its vector, worded", "a true sentence from elsewhere"
CONTEXT_SENTENCES = 10


@dataclass(frozen=True)
class Places:
    """Where words are asked for."""

    document_N: np.ndarray
    """Number of each place's document among the judged ones."""
    position_N: np.ndarray
    """The last sentence that is read there."""
    context: list[list[str]]
    """The last ten sentences read, or as many as there are."""
    truth: list[str]


def choose_places(documents: Documents, n: int, *, minimum_context: int, seed: int) -> Places:
    """`n` places at random, spread over the documents, before a whole sentence or a first piece.

    Raises:
        UserError: the corpus keeps no text.
    """
    generator = np.random.default_rng(seed)
    found: list[tuple[int, int]] = []
    for g, part_S in enumerate(documents.parts()):
        asked = np.flatnonzero(part_S == 0)
        found += [
            (g, int(s) - 1) for s in generator.permutation(asked[asked >= minimum_context])[: max(1, -(-n // len(documents.numbers)))]
        ]
    if not found:
        raise UserError(f"--wording {n}: no judged document is longer than --minimum-context {minimum_context} sentences")
    kept = [found[k] for k in np.sort(generator.permutation(len(found))[:n])]
    context, truth = [], []
    for g, s in kept:
        texts = documents.corpus.texts(int(documents.numbers[g]))
        context.append([" ".join(text.split()) for text in texts[max(0, s + 1 - CONTEXT_SENTENCES) : s + 1]])
        truth.append(" ".join(texts[s + 1].split()))
    document_N, position_N = np.array(kept).T
    return Places(document_N, position_N, context, truth)


def predicted_at(documents: Documents, places: Places, predictors: Mapping[str, Predictor]) -> dict[str, np.ndarray]:
    """What each predicts at the places, and the true vectors there (`TRUE_VECTOR`): unit vectors float32 [N, D]."""
    vectors = documents.vectors()
    where = list(zip(places.document_N, places.position_N, strict=True))
    found: dict[str, np.ndarray] = {}
    for name, predictor in predictors.items():
        predicted = {g: np.asarray(predictor(np.asarray(vectors[g], dtype=np.float32))) for g in np.unique(places.document_N)}
        found[name] = np.stack([predicted[g][s] for g, s in where])
    found[TRUE_VECTOR] = np.stack([vectors[g][s + 1] for g, s in where])
    return {name: unit(z_ND).astype(np.float32) for name, z_ND in found.items()}


def word(planned: Mapping[str, np.ndarray], places: Places, decoder: Decoder, *, seed: int = 0) -> dict[str, list[str]]:
    """What the decoder makes of the vectors of `predicted_at`; the true sentences and others beside it."""
    said = {name: decoder.decode(z_ND, seed=seed) for name, z_ND in planned.items()}
    return said | {TRUTH: places.truth, ELSEWHERE: _elsewhere(places)}


def measure(
    places: Places,
    said: Mapping[str, Sequence[str]],
    encode: Encode,
    lm: FrozenLM,
    *,
    planned: Mapping[str, np.ndarray] = MappingProxyType({}),
    resamples: int = 1000,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> list[dict[str, Any]]:
    """One row a predictor, with 95 % intervals from resampling documents.

    Columns: ROUGE-L, token-F1 and chrF against the true next sentence; cosine of the re-encoded text to it; `mutual_information`, by how
    many nats a token the text is likelier under the LM after the last ten sentences than alone (Large Concept Model, §2.4, with a small LM
    for its GPT-2); `information_sentence`, the same in nats a sentence; share of texts that were said more than once (`repeated`).
    Where the vectors are given (`planned`, semantic ones): `l2` of the vector to the true one, `l2_round_trip` of its re-encoded text to
    the true one (that paper's ℓ2-r), and `l2_round_trip_gap`, the first less the second: below zero where wording moves a vector away from
    the truth. That paper reads it as a distance from where sentences lie, with a decoder that loses little; how much this one loses by
    itself stands in the row of the true vectors.
    """
    truth_ND = unit(encode(places.truth))
    drawn_RG = intervals.draw(int(places.document_N.max()) + 1, resamples, seed)
    rows = []
    gained_NM = mutual_information(lm, places.context, list(zip(*said.values(), strict=True)), advance)
    for (name, texts), gained_N in zip(said.items(), gained_NM.T, strict=True):
        scores = score_texts(list(texts), places.truth)
        counts_N = np.array([len(ids) for ids in lm.tokens.encode([f" {text}" for text in texts])])
        values_N = {
            "rouge_l": np.array([rouge_l(*pair) for pair in zip(texts, places.truth, strict=True)]),
            "token_f1": scores.token_f1_N,
            "chrf": scores.chrf_N,
            "cosine": (unit(encode(list(texts))) * truth_ND).sum(1),
            "mutual_information": gained_N,
            "information_sentence": gained_N * counts_N,
        }
        if name in planned:
            values_N["l2"] = np.linalg.norm(planned[name] - truth_ND, axis=1)
            values_N["l2_round_trip"] = np.sqrt(np.maximum(2 - 2 * values_N["cosine"], 0))
            values_N["l2_round_trip_gap"] = values_N["l2"] - values_N["l2_round_trip"]
        estimates = {key: intervals.mean(value_N, places.document_N, drawn_RG) for key, value_N in values_N.items()}
        repeated = 1 - len(set(texts)) / len(texts)
        rows.append(
            {"predictor": name, "n": len(texts), "repeated": repeated, "tokens": float(counts_N.mean()), **intervals.as_row(estimates)}
        )
    return rows


def mutual_information(
    lm: FrozenLM, contexts: Sequence[Sequence[str]], texts: Sequence[Sequence[str]], advance: Callable[[int], None] = lambda n: None
) -> np.ndarray:
    """log p(text | context) − log p(text) over the number of tokens, in nats, float64 [N, M] for the M texts of each of N places; alone, a
    text follows two line ends. A context is read once for all its texts.

    An empty text says nothing of its context: 0.
    """
    import torch

    gained_NM = np.zeros((len(contexts), len(texts[0]) if len(texts) else 0))
    (nothing,) = lm.tokens.encode(["\n\n"])
    with torch.inference_mode():
        for n, (context, texts_M) in enumerate(zip(contexts, texts, strict=True)):
            said = [m for m, text in enumerate(texts_M) if text.strip()]
            (read,) = lm.tokens.encode([" ".join(context)])
            if said:
                written = [f" {texts_M[m].strip()}" for m in said]
                gained_NM[n, said] = (_nats(lm, nothing, written) - _nats(lm, read, written)).cpu().numpy()
            advance(len(texts_M))
    return gained_NM


def _nats(lm: FrozenLM, before: Sequence[int], texts: Sequence[str]) -> Tensor:
    """Nats a token of each text after the tokens `before`, [M]."""
    import torch

    from lsm.lm.loss import frozen_cross_entropy, row_means

    ids_MT, mask_MT = lm.tokenize(texts)
    last_1H, cache = lm.read(lm.embed(torch.tensor([[*lm.tokens.start_ids, *before]], device=lm.device)), lm.new_cache())
    first_M1H = last_1H[:, None].expand(len(texts), -1, -1)
    if ids_MT.shape[1] > 1:
        cache.batch_repeat_interleave(len(texts))
        first_M1H = torch.cat([first_M1H, lm.final_hidden(lm.embed(ids_MT[:, :-1]), cache)], dim=1)
    return row_means(frozen_cross_entropy(first_M1H[mask_MT], lm.head_VH, ids_MT[mask_MT]), mask_MT)


def _elsewhere(places: Places) -> list[str]:
    """For each place the true sentence of the next place in another document (of the next place, where all are in one)."""
    n = len(places.truth)
    order = [[(k + step) % n for step in range(1, n + 1)] for k in range(n)]
    others = [next((j for j in after if places.document_N[j] != places.document_N[k]), after[0]) for k, after in enumerate(order)]
    return [places.truth[j] for j in others]
