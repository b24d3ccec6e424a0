"""A batch of pretraining: what is read, predicted, contrasted, hidden and worded, drawn for the whole and shared out to the processes.

Shape letters: B rows, S sentences, D vector width, N queries, M candidates of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsm.corpus.sampler import PAD, PackedBatch
from lsm.latent import objectives
from lsm.latent.ahead import Further, further_sentences
from lsm.latent.hard_negatives import HardNegativeTable
from lsm.latent.settings import ObjectiveSettings, PretrainSettings
from lsm.training.distributed import ALONE, Ranks


@dataclass(frozen=True)
class LatentBatch:
    """A packed batch as tensors on the device, with everything that is drawn or derived from ids.

    Where several processes share it, `packed` is the whole and the tensors are this one's rows and queries; M counts the candidates
    of the whole.
    """

    packed: PackedBatch
    z_BSD: Tensor
    segment_BS: Tensor | None
    """None when no row holds two windows."""
    section_BS: Tensor
    source_N: Tensor
    target_N: Tensor
    contrast_N: Tensor
    """Which of the N take part in InfoNCE."""
    candidate_MD: Tensor
    """InfoNCE's targets in the whole batch, and behind them the hard negatives drawn for it."""
    own_N: Tensor
    """Which of them is each query's own."""
    blocked_NM: Tensor
    document_M: Tensor
    """Document of each candidate."""
    hidden_BS: Tensor | None
    noise_BSD: Tensor | None
    masked_BS: Tensor
    """The first rows' hidden spans for denoising."""
    masked_segment_BS: Tensor
    """The segments of these rows."""
    worded_N: Tensor
    """Which of the N are worded."""
    target_row_N: np.ndarray
    """Number of each target in the corpus."""
    first_row_N: np.ndarray
    """Number of the first sentence of its window there."""
    ahead: tuple[Further, ...]
    """This process's places with a sentence 2, 3 … further on; empty where the objective `ahead` is off."""
    weights: dict[str, float]
    """What this process's means (`contrast`, `denoise`, `words`, `others`) count in the mean over the processes; 1 where it is alone."""


def make_batch(
    packed: PackedBatch,
    generator: np.random.Generator,
    settings: PretrainSettings,
    *,
    device: torch.device,
    ranks: Ranks | None,
    hard: HardNegativeTable | None = None,
) -> LatentBatch:
    """This process's share of a packed batch. Everything is drawn for the whole of it: any number of processes trains on the same.

    Args:
        ranks: the processes of a training; None = an evaluation, which each does alone and without dropped or noisy context.
        hard: where hard negatives are drawn from, in training.
    """
    data, goals, training, ranks = settings.data, settings.objectives, ranks is not None, ranks or ALONE

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    own = packed.rows(ranks.rows)
    source, target = objectives.next_sentences(packed)
    own_source, own_target = objectives.next_sentences(own)
    is_own = source // packed.segment_BS.shape[1] % ranks.size == ranks.rank
    contrasted = np.ones(len(source), dtype=bool) if goals.later_pieces else packed.part_BS.reshape(-1)[target] == 0
    source_M, target_M, own_N = source[contrasted], target[contrasted], np.flatnonzero(is_own[contrasted])
    segment_BS = packed.segment_BS[: denoised_rows(len(packed.segment_BS), goals)]
    masked_BS = objectives.span_mask(
        segment_BS, generator, ratio_min=goals.mask_ratio_min, ratio_max=goals.mask_ratio_max, mean_span=goals.mask_span
    )
    hidden_BS = noise_BSD = None
    if training and data.context_dropout:
        hidden_BS = (generator.random(packed.segment_BS.shape) < data.context_dropout)[ranks.rows]
    if training and data.noise:
        noise_BSD = (generator.standard_normal(packed.z_BSD.shape, dtype=np.float32) * np.float32(data.noise))[ranks.rows]
    worded = np.zeros(0, dtype=np.int64)
    if goals.worded:
        worded = np.sort(generator.permutation(len(source))[: goals.words_sentences])
    own_worded = worded[is_own[worded]]
    candidate_MD, document_M = packed.z_BSD.reshape(-1, packed.z_BSD.shape[-1])[target_M], packed.document_BS.reshape(-1)[target_M]
    drawn = None
    if hard is not None:  # drawn last, so that everything else is as without them
        drawn = hard.draw(packed.row_id_BS.reshape(-1)[target_M], generator)
        candidate_MD, document_M = np.concatenate([candidate_MD, drawn.z_XD]), np.concatenate([document_M, drawn.document_X])
    blocked_NM = np.zeros((0, 0), dtype=bool)
    if goals.contrasts:
        blocked_NM = objectives.blocked_candidates(
            packed, source_M, target_M, in_document=goals.in_document_negatives, own_N=own_N, hard=drawn
        )
    own_share = {
        "contrast": len(own_N) / max(1, len(source_M)),
        "denoise": masked_BS[ranks.rows].sum() / masked_BS.sum(),
        "words": len(own_worded) / max(1, len(worded)),
        "others": is_own.mean(),
    }
    return LatentBatch(
        packed=packed,
        z_BSD=tensor(own.z_BSD),
        segment_BS=None if packed.one_segment_a_row else tensor(own.segment_BS),
        section_BS=tensor(own.section_BS),
        source_N=tensor(own_source),
        target_N=tensor(own_target),
        contrast_N=tensor(np.flatnonzero(contrasted[is_own])),
        candidate_MD=tensor(candidate_MD),
        own_N=tensor(own_N),
        blocked_NM=tensor(blocked_NM),
        document_M=tensor(document_M),
        hidden_BS=None if hidden_BS is None else tensor(hidden_BS),
        noise_BSD=None if noise_BSD is None else tensor(noise_BSD),
        masked_BS=tensor(masked_BS[ranks.rows]),
        masked_segment_BS=tensor(segment_BS[ranks.rows]),
        worded_N=tensor(is_own.cumsum()[own_worded] - 1),
        target_row_N=packed.row_id_BS.reshape(-1)[target[is_own]],
        first_row_N=_window_starts(own).reshape(-1)[own_target],
        ahead=further_sentences(packed, own, goals.heads_ahead, processes=ranks.size, device=torch.device(device)),
        weights={name: ranks.size * float(share) for name, share in own_share.items()},
    )


def denoised_rows(rows: int, goals: ObjectiveSettings) -> int:
    """How many of a batch's rows also go through the denoising pass."""
    return max(1, round(rows * goals.denoise_rows))


def _window_starts(packed: PackedBatch) -> np.ndarray:
    """Number in the corpus of the first sentence of each place's window, [B, S]: windows are runs of their document's sentences."""
    starts = np.diff(packed.segment_BS, axis=1, prepend=PAD - 1) != 0
    place_BS = np.maximum.accumulate(np.where(starts, np.arange(starts.shape[1]), 0), axis=1)
    return np.take_along_axis(packed.row_id_BS, place_BS, axis=1)
