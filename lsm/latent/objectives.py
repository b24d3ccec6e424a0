"""The objectives: next-vector MSE, InfoNCE against the batch, and restoring masked spans.

Shape letters: B rows, S sentences, D vector width, N queries, M candidates, X hard negatives, P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsm.corpus.sampler import PAD, PackedBatch

if TYPE_CHECKING:
    from lsm.latent.hard_negatives import HardNegatives

_NEVER = -1e4


def next_sentences(batch: PackedBatch, *, later_pieces: bool = True, distance: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions s whose next sentence stands beside them in the same window, and those of their targets: int64 [N] each.

    `later_pieces=False` leaves out targets that are a later piece of a split sentence; `distance` 2 … pairs with sentences further on.
    """
    follows = (batch.segment_BS[:, distance:] == batch.segment_BS[:, :-distance]) & (batch.segment_BS[:, distance:] != PAD)
    if not later_pieces:
        follows &= batch.part_BS[:, distance:] == 0
    row, place = np.nonzero(follows)
    source = row * batch.segment_BS.shape[1] + place
    return source, source + distance


def blocked_candidates(
    batch: PackedBatch,
    source_M: np.ndarray,
    target_M: np.ndarray,
    *,
    in_document: bool = True,
    own_N: np.ndarray | None = None,
    hard: HardNegatives | None = None,
) -> np.ndarray:
    """Which targets [M] may not stand among the negatives of which query, bool [N, M]; each query's own target is free.

    The queries are those numbered `own_N` of source_M (None = all, so that N = M); own_N is also the number of their targets. With hard
    negatives bool [N, M + X]: they stand behind the targets, and are also blocked where they are nearly the query's target.

    Blocked are sentences of the query's document up to the query itself (already read: the scoreboard excludes them, and with
    them as negatives the model unlearns that a document stays on its subject), and copies of the target, which nothing can tell
    from it. Without `in_document` all of the query's document is blocked.
    """
    document, row_id, content = (ids.reshape(-1) for ids in (batch.document_BS, batch.row_id_BS, batch.content_BS))
    own_N = np.arange(len(target_M)) if own_N is None else own_N
    candidate_document, candidate_row, content_M = document[target_M].astype(np.int32), row_id[target_M].astype(np.int32), content[target_M]
    if hard is not None:
        candidate_document = np.concatenate([candidate_document, hard.document_X.astype(np.int32)])
        candidate_row = np.concatenate([candidate_row, hard.row_X.astype(np.int32)])
    blocked = candidate_document[own_N, None] == candidate_document[None]
    if in_document:
        read_until = row_id[source_M[own_N]].astype(np.int32)
        blocked &= candidate_row[None] <= read_until[:, None]
    _, kind = np.unique(content_M, return_inverse=True)
    kind = kind.astype(np.int32)
    blocked[:, : len(kind)] |= kind[own_N, None] == kind[None]
    if hard is not None:
        is_alike_MX = np.zeros((len(target_M), len(hard.row_X)), dtype=bool)
        is_alike_MX[hard.alike_P2[:, 0], hard.alike_P2[:, 1]] = True
        blocked[:, len(kind) :] |= is_alike_MX[own_N]
    blocked[np.arange(len(own_N)), own_N] = False
    return blocked


def mse(prediction_ND: Tensor, target_ND: Tensor, scale_D: Tensor) -> Tensor:
    """Mean squared error of the next vector in units of the normaliser's scale."""
    return ((prediction_ND - target_ND) / scale_D).square().mean()


def contrast_logits(prediction_ND: Tensor, target_MD: Tensor, log_temperature: Tensor, *, temperature_min: float) -> Tensor:
    """Cosine of every prediction with every target over the temperature, float32 [N, M]."""
    # In float32: a low temperature magnifies bf16's rounding of the cosines.
    with torch.autocast(prediction_ND.device.type, enabled=False):
        cosine_NM = F.normalize(prediction_ND.float(), dim=-1) @ F.normalize(target_MD.float(), dim=-1).T
        # The bound keeps its gradient, so that a temperature pushed below it can come back.
        temperature = temperature_min + F.relu(log_temperature.float().exp() - temperature_min)
        return cosine_NM / temperature


def infonce(logits_NM: Tensor, blocked_NM: Tensor, *, focus: float = 0.0, own_N: Tensor | None = None) -> Tensor:
    """Picking one's own target, number `own_N` (None = on the diagonal), among all that are not blocked (van den Oord et al. 2018).

    With p the probability of the own target, the loss is −log p at `focus` 0 and (1 − p^focus) / focus above it (the generalised
    cross-entropy of Zhang & Sabuncu 2018, eq. 6). −log p is the logarithm of a rank: moving a hopeless target from rank 2,000
    to 1,000 pays as much as moving one from 2 to 1, and predictions lose their first ranks to gain the far ones. With a focus the
    hopeless ones stop pulling, which is what recall@k and the reciprocal rank reward.
    """
    own_N = torch.arange(len(logits_NM), device=logits_NM.device) if own_N is None else own_N
    if not len(own_N):
        return 0 * logits_NM.sum()  # the mean of nothing would be NaN
    surprise_N = F.cross_entropy(logits_NM.masked_fill(blocked_NM, _NEVER), own_N, reduction="none")
    if focus:
        return -torch.expm1(-focus * surprise_N).mean() / focus
    return surprise_N.mean()


def span_mask(
    segment_BS: np.ndarray, generator: np.random.Generator, *, ratio_min: float, ratio_max: float, mean_span: float
) -> np.ndarray:
    """Random spans of sentences to hide, bool [B, S]: in each row a share drawn from [ratio_min, ratio_max], in spans of geometric length.

    As T5's span corruption (Raffel et al. 2020, §3.3), with whole sentences for tokens. At least one sentence of a row is hidden,
    and none of the padding.
    """
    masked_BS = np.zeros(segment_BS.shape, dtype=bool)
    for row, segments in enumerate(segment_BS):
        length = int((segments != PAD).sum())
        wanted = max(1, round(length * generator.uniform(ratio_min, ratio_max)))
        while (missing := wanted - int(masked_BS[row].sum())) > 0:
            span = min(int(generator.geometric(1 / mean_span)), missing)
            start = int(generator.integers(0, length))
            masked_BS[row, start : min(length, start + span)] = True
    return masked_BS


def denoise(restored_BSD: Tensor, target_BSD: Tensor, masked_BS: Tensor) -> Tensor:
    """Mean squared error over the masked sentences, both in the normaliser's space."""
    return (restored_BSD[masked_BS] - target_BSD[masked_BS]).square().mean()
