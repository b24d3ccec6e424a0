"""The next-sentence scoreboard: where the true next sentence ranks among all held-out sentences, for any predictor of vectors.

Letters: S sentences of a document, D vector width, Q queries (one a predicted sentence), C candidates.

Protocol. In every document and at every position s with enough context, a predictor that has seen sentences 0 … s gives a vector for s+1.
Targets are whole sentences or first pieces: the later pieces of a split sentence (`part` > 0) are easy to guess and are neither targets nor
candidates. Candidates are the sentences of all documents, without those already read in this document. All distances are taken on the unit
sphere. Equal candidates (the same sentence twice) share their ranks' mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lsm.bench import intervals
from lsm.bench.intervals import Estimate
from lsm.latent.diagnostics import effective_rank, mean_pairwise_cosine, principal_dims

Predictor = Callable[[np.ndarray], np.ndarray]
"""z_SD → predicted_SD: row s, seen from z[: s + 1] alone, predicts z[s + 1]. A row of NaN = no prediction asked for here."""

QUANTITIES = (
    "rank",
    "document_rank",
    "document_chance",
    "contrastive_accuracy",
    "document_contrastive_accuracy",
    "cosine",
    "l2",
    "l2_nearest",
)
RECALL_AT = (1, 10, 100)
_TIE_TOLERANCE = 1e-6  # float32 products of equal vectors differ by this much with their place in a block
_CHUNK_ELEMENTS = 3_000_000  # cosines at a time: small enough that counting them happens in cache


@dataclass(frozen=True)
class Queries:
    """What is asked: each query's document, position and target, and the candidates."""

    candidates_CD: torch.Tensor
    candidate_start: np.ndarray
    """Document g's candidates are rows candidate_start[g] … candidate_start[g + 1] − 1."""
    candidate_position_C: np.ndarray
    document_Q: np.ndarray
    position_Q: np.ndarray
    target_Q: np.ndarray
    """Row of the true next sentence among the candidates."""

    def select(self, asked_Q: np.ndarray) -> Queries:
        """Some of the queries, among the same candidates; bool [Q]."""
        some = {name: getattr(self, name)[asked_Q] for name in ("document_Q", "position_Q", "target_Q")}
        return replace(self, **some)


@dataclass
class Scoreboard:
    """What every predictor reached on every query; `rows` sums it up."""

    queries: Queries
    n_documents: int
    outcomes: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Predictor → quantity (`QUANTITIES`) → one value a query."""
    spread: dict[str, dict[str, float]] = field(default_factory=dict)

    def rows(self, *, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
        """One row a predictor: value and, under `intervals`, [low, high] of each metric."""
        drawn_RG = intervals.draw(self.n_documents, resamples, seed)
        return [self._row(name, drawn_RG) for name in self.outcomes]

    def difference(self, name: str, other: str, *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
        """`name` minus `other` on the queries that both answered, metric by metric, with paired intervals over documents."""
        drawn_RG = intervals.draw(self.n_documents, resamples, seed)
        ours, theirs = _metrics(self.outcomes[name]), _metrics(self.outcomes[other])
        return {metric: intervals.mean(ours[metric] - theirs[metric], self.queries.document_Q, drawn_RG) for metric in ours}

    def _row(self, name: str, drawn_RG: np.ndarray) -> dict[str, Any]:
        outcome, document_Q = self.outcomes[name], self.queries.document_Q
        estimates = {metric: intervals.mean(values, document_Q, drawn_RG) for metric, values in _metrics(outcome).items()}
        estimates["median_rank"] = intervals.median(outcome["rank"], document_Q, drawn_RG)
        answered = ~np.isnan(outcome["rank"])
        return {
            "predictor": name,
            "n_documents": len(np.unique(document_Q[answered])),
            "n": int(answered.sum()),
            "n_candidates": len(self.queries.candidates_CD),
            **self.spread[name],
            **intervals.as_row(estimates),
        }


def score_predictors(
    documents: Sequence[np.ndarray],
    parts: Sequence[np.ndarray],
    predictors: Mapping[str, Predictor],
    *,
    minimum_context: int = 3,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Score predictors on documents; one row each (see `Scoreboard.rows`).

    Args:
        documents: sentence vectors [S, D] of each document in reading order, any floating dtype.
        parts: [S] of each document: 0 = whole sentence or first piece, 1, 2 … = later pieces.
        predictors: name → predictor.
        minimum_context: sentences that must have been read before a prediction counts.
        resamples: bootstrap resamples of documents; 0 = no intervals.
        seed: of the resampling.
    """
    return measure(documents, parts, predictors, minimum_context=minimum_context).rows(resamples=resamples, seed=seed)


def measure(
    documents: Sequence[np.ndarray],
    parts: Sequence[np.ndarray],
    predictors: Mapping[str, Predictor],
    *,
    minimum_context: int = 3,
    dims: slice = slice(None),
    advance: Callable[[str], None] = lambda name: None,
) -> Scoreboard:
    """Ask every predictor about every query and keep all outcomes; `advance` is called after each predictor.

    Predictors read whole vectors; only `dims` of what they predict, and of the candidates, are judged.
    """
    queries = make_queries([z_SD[:, dims] for z_SD in documents], parts, minimum_context=minimum_context)
    board = Scoreboard(queries, n_documents=len(documents))
    asked_by_document = [queries.position_Q[queries.document_Q == g] for g in range(len(documents))]
    for name, predictor in predictors.items():
        predicted = [_ask(predictor, z_SD, asked) for z_SD, asked in zip(documents, asked_by_document, strict=True) if len(asked)]
        predicted_QD = _unit(np.concatenate(predicted)[:, dims])
        answered_Q = ~torch.isnan(predicted_QD[:, 0])
        found = _rank(predicted_QD[answered_Q], queries.select(answered_Q.numpy()))
        board.outcomes[name] = {quantity: np.full(len(answered_Q), np.nan) for quantity in QUANTITIES}
        for quantity, values in found.items():
            board.outcomes[name][quantity][answered_Q.numpy()] = values
        board.spread[name] = spread(predicted_QD[answered_Q])
        advance(name)
    return board


def make_queries(documents: Sequence[np.ndarray], parts: Sequence[np.ndarray], *, minimum_context: int) -> Queries:
    """Lay out candidates and queries. At least one query must come out: documents longer than `minimum_context` sentences."""
    assert len(documents) == len(parts) and minimum_context >= 1
    vectors, positions, document, position, target = [], [], [], [], []
    starts = [0]
    for g, (z_SD, part_S) in enumerate(zip(documents, parts, strict=True)):
        assert len(z_SD) == len(part_S)
        whole = np.flatnonzero(np.asarray(part_S) == 0)
        asked = whole[whole >= minimum_context]
        vectors.append(np.asarray(z_SD, dtype=np.float32)[whole])
        positions.append(whole)
        document.append(np.full(len(asked), g))
        position.append(asked - 1)
        target.append(starts[-1] + np.searchsorted(whole, asked))
        starts.append(starts[-1] + len(whole))
    assert sum(map(len, target)) > 0, "no document is longer than the minimum context"
    return Queries(
        candidates_CD=_unit(np.concatenate(vectors)),
        candidate_start=np.asarray(starts),
        candidate_position_C=np.concatenate(positions),
        document_Q=np.concatenate(document),
        position_Q=np.concatenate(position),
        target_Q=np.concatenate(target),
    )


def spread(predicted_QD: torch.Tensor) -> dict[str, float]:
    """Whether predictions differ from one another: 1 and 1.0 when all are the same vector."""
    return {
        "effective_rank": effective_rank(predicted_QD),
        "principal_dims_90": principal_dims(predicted_QD),
        "mean_pairwise_cosine": mean_pairwise_cosine(predicted_QD),
    }


def _ask(predictor: Predictor, z_SD: np.ndarray, asked: np.ndarray) -> np.ndarray:
    predicted_SD = np.asarray(predictor(np.asarray(z_SD, dtype=np.float32)), dtype=np.float32)
    assert predicted_SD.shape == z_SD.shape, f"predictor returned {predicted_SD.shape} for {z_SD.shape}"
    return predicted_SD[asked]


def _rank(predicted_QD: torch.Tensor, queries: Queries) -> dict[str, np.ndarray]:
    n, n_candidates = len(predicted_QD), len(queries.candidates_CD)
    outcome = {quantity: np.full(n, np.nan) for quantity in QUANTITIES}
    chunk = max(1, _CHUNK_ELEMENTS // n_candidates)
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        cosine_QC = predicted_QD[start:stop] @ queries.candidates_CD.T
        target_Q = torch.from_numpy(queries.target_Q[start:stop])
        true_Q1 = cosine_QC.gather(1, target_Q[:, None])
        neighbours_Q2 = _neighbours(queries, slice(start, stop))
        outcome["contrastive_accuracy"][start:stop] = _contrastive_accuracy(cosine_QC, true_Q1, neighbours_Q2)
        documents, first = np.unique(queries.document_Q[start:stop], return_index=True)
        for g, a, b in zip(documents, first, [*first[1:], stop - start], strict=True):
            own = slice(queries.candidate_start[g], queries.candidate_start[g + 1])
            beside_Q2 = np.where(neighbours_Q2[a:b] < 0, -1, neighbours_Q2[a:b] - own.start)
            outcome["document_contrastive_accuracy"][start + a : start + b] = _contrastive_accuracy(
                cosine_QC[a:b, own], true_Q1[a:b], beside_Q2
            )
            unread = torch.from_numpy(queries.candidate_position_C[own][None, :] > queries.position_Q[start + a : start + b, None])
            cosine_QC[a:b, own].masked_fill_(~unread, -torch.inf)
            later = unread.sum(1).numpy().astype(np.float64)
            ranks = _mid_rank(cosine_QC[a:b, own], true_Q1[a:b])
            # With one sentence left there is nothing to choose from.
            outcome["document_rank"][start + a : start + b] = np.where(later > 1, ranks, np.nan)
            outcome["document_chance"][start + a : start + b] = np.where(later > 1, 1 / later, np.nan)
        cosine_Q = true_Q1[:, 0].double().clamp(-1, 1)
        nearest_Q = cosine_QC.amax(1).double().clamp(-1, 1)
        outcome["rank"][start:stop] = _mid_rank(cosine_QC, true_Q1)
        outcome["cosine"][start:stop] = cosine_Q.numpy()
        outcome["l2"][start:stop] = (2 - 2 * cosine_Q).sqrt().numpy()
        outcome["l2_nearest"][start:stop] = (2 - 2 * nearest_Q).sqrt().numpy()
    return outcome


def _neighbours(queries: Queries, some: slice) -> np.ndarray:
    """The candidates right before and right after each target in its document, int64 [Q, 2]; −1 where there is none."""
    target_Q, document_Q = queries.target_Q[some], queries.document_Q[some]
    before_Q = np.where(target_Q > queries.candidate_start[document_Q], target_Q - 1, -1)
    after_Q = np.where(target_Q + 1 < queries.candidate_start[document_Q + 1], target_Q + 1, -1)
    return np.stack([before_Q, after_Q], axis=1)


def _contrastive_accuracy(cosine_QC: torch.Tensor, true_Q1: torch.Tensor, neighbours_Q2: np.ndarray) -> np.ndarray:
    """Share of the candidates that lie further from the prediction than the truth does, the truth's two neighbours left out (Large Concept
    Model, §2.4: there among a batch, by ℓ2, which on the sphere orders as the cosine does); sentences already read take part. Among a whole
    corpus a mean of what was read has nearly all of it; among the document's own sentences it has not."""
    is_there_Q2 = torch.from_numpy(neighbours_Q2 >= 0)
    beside_Q2 = cosine_QC.gather(1, torch.from_numpy(neighbours_Q2).clamp(min=0)).masked_fill(~is_there_Q2, torch.inf)
    others_Q = cosine_QC.shape[1] - 1 - is_there_Q2.sum(1).numpy()
    further_Q = cosine_QC.shape[1] - _mid_rank(cosine_QC, true_Q1)
    # `_mid_rank` counts each entry once; what the neighbours add to it is 1 beyond the truth, a half at it.
    beyond_Q2 = (beside_Q2 < true_Q1 - _TIE_TOLERANCE).double()
    level_Q2 = ((beside_Q2 - true_Q1).abs() <= _TIE_TOLERANCE).double()
    further_Q -= (beyond_Q2 + level_Q2 / 2).sum(1).numpy()
    return np.where(others_Q > 0, further_Q / np.maximum(others_Q, 1), np.nan)


def _mid_rank(cosine_QC: torch.Tensor, true_Q1: torch.Tensor) -> np.ndarray:
    better = (cosine_QC > true_Q1 + _TIE_TOLERANCE).sum(1, dtype=torch.int32)
    not_worse = (cosine_QC >= true_Q1 - _TIE_TOLERANCE).sum(1, dtype=torch.int32)
    return (1 + better + (not_worse - better - 1) / 2).double().numpy()


def _metrics(outcome: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rank, document_rank = outcome["rank"], outcome["document_rank"]
    metrics = {f"recall_at_{k}": _within(rank, k) for k in RECALL_AT}
    metrics["mrr"] = 1 / rank
    metrics["document_recall_at_1"] = _within(document_rank, 1)
    metrics["document_mrr"] = 1 / document_rank
    metrics["document_chance"] = outcome["document_chance"]
    for name in ("contrastive_accuracy", "document_contrastive_accuracy"):
        metrics[name] = outcome[name]
    metrics["cosine"], metrics["l2"], metrics["l2_nearest"] = outcome["cosine"], outcome["l2"], outcome["l2_nearest"]
    metrics["l2_gap"] = outcome["l2"] - outcome["l2_nearest"]
    return metrics


def _within(rank: np.ndarray, k: int) -> np.ndarray:
    return np.where(np.isnan(rank), np.nan, (rank <= k).astype(np.float64))


def _unit(vectors: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    return tensor / tensor.norm(dim=-1, keepdim=True).clamp_min(1e-12)
