"""The small scoreboard shown while training; the full one, with all controls and intervals, is `lsm evaluate`.

Shape letters: N predictions, M candidates, D vector width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsm.corpus.sampler import PAD, PackedBatch
from lsm.latent.anchor import BEST_DECAY, exponential_mean
from lsm.latent.diagnostics import collapse, effective_rank, l2_to_truth, mean_pairwise_cosine
from lsm.latent.objectives import next_sentences
from lsm.progress import say

_CHUNK_ROWS = 512


def evaluate_batches(batches: Iterable[tuple[PackedBatch, Tensor, dict[str, float]]], dims: slice = slice(None)) -> dict[str, float]:
    """Losses averaged over batches, and the rank of the true next sentence among all sentences of all batches.

    As on the scoreboard: sentences already read and later pieces of split sentences are no candidates, later pieces no targets.
    Beside the model stands the exponential mean it starts from (`control_…`). All but the losses look at `dims` of the vectors alone.
    """
    losses: list[dict[str, float]] = []
    predicted, control, truth, truth_row, read_until, query_document = [], [], [], [], [], []
    candidates, candidate_row, candidate_document = [], [], []
    for packed, prediction_BSD, loss in batches:
        losses.append(loss)
        z_BSD, prediction_BSD = torch.from_numpy(packed.z_BSD)[..., dims], prediction_BSD[..., dims]
        flat_z = z_BSD.flatten(0, 1)
        source_N, target_N = next_sentences(packed, later_pieces=False)
        segment_BS = torch.from_numpy(packed.segment_BS)
        causal_BSS = (segment_BS[:, :, None] == segment_BS[:, None]).tril()
        control_BSD = exponential_mean(z_BSD, causal_BSS, BEST_DECAY)
        predicted.append(prediction_BSD.flatten(0, 1)[source_N])
        control.append(control_BSD.flatten(0, 1)[source_N])
        truth.append(flat_z[target_N])
        row_id, document, part = (ids.reshape(-1) for ids in (packed.row_id_BS, packed.document_BS, packed.part_BS))
        truth_row.append(row_id[target_N])
        read_until.append(row_id[source_N])
        query_document.append(document[source_N])
        whole = np.flatnonzero((row_id != PAD) & (part == 0))
        candidates.append(flat_z[whole])
        candidate_row.append(row_id[whole])
        candidate_document.append(document[whole])
    rows, first = np.unique(np.concatenate(candidate_row), return_index=True)  # windows of a document share a sentence
    candidate_MD = F.normalize(torch.cat(candidates)[first], dim=-1)
    documents = np.concatenate(candidate_document)[first]
    queries = [np.concatenate(ids) for ids in (truth_row, read_until, query_document)]
    scores = {name: float(np.mean([loss[name] for loss in losses])) for name in losses[0]}
    truth_ND, predicted_ND = torch.cat(truth), torch.cat(predicted)
    for name, vectors_ND in (("", predicted_ND), ("control_", torch.cat(control))):
        rank_N = _ranks(F.normalize(vectors_ND, dim=-1), candidate_MD, rows, documents, *queries)
        scores |= {f"{name}recall_10": float((rank_N <= 10).mean()), f"{name}median_rank": float(np.median(rank_N))}
    unit_ND = F.normalize(predicted_ND, dim=-1)
    if dead := collapse(unit_ND, F.normalize(truth_ND, dim=-1)):
        say(f"COLLAPSE: {dead}")
    return scores | {
        "cosine": float((unit_ND * F.normalize(truth_ND, dim=-1)).sum(-1).mean()),
        "l2": l2_to_truth(unit_ND, truth_ND),
        "effective_rank": effective_rank(unit_ND),
        "pairwise_cosine": mean_pairwise_cosine(unit_ND),
    }


def _ranks(
    query_ND: Tensor,
    candidate_MD: Tensor,
    candidate_row_M: np.ndarray,
    candidate_document_M: np.ndarray,
    truth_row_N: np.ndarray,
    read_until_N: np.ndarray,
    document_N: np.ndarray,
) -> np.ndarray:
    """1-based rank of each truth by cosine, ties shared (mid-rank), sentences already read left out."""
    truth_place_N = torch.from_numpy(np.searchsorted(candidate_row_M, truth_row_N))
    row_M, document_M = torch.from_numpy(candidate_row_M), torch.from_numpy(candidate_document_M)
    read_N, doc_N = torch.from_numpy(read_until_N), torch.from_numpy(document_N)
    ranks = []
    for start in range(0, len(query_ND), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        score_NM = query_ND[chunk] @ candidate_MD.T
        score_NM[(document_M[None] == doc_N[chunk, None]) & (row_M[None] <= read_N[chunk, None])] = -2.0
        own_N = score_NM.gather(1, truth_place_N[chunk, None])
        better, equal = (score_NM > own_N).sum(1), (score_NM == own_N).sum(1)
        ranks.append((better + (equal + 1) / 2).numpy())
    return np.concatenate(ranks)
