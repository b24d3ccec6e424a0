"""Promises of the objectives: known values, and negatives without what has been read."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lsm.corpus.sampler import PAD, ArrayDocuments, PackedBatch, PackedSampler
from lsm.errors import UserError
from lsm.latent.objectives import blocked_candidates, denoise, infonce, mse, next_sentences, span_mask
from lsm.latent.settings import ObjectiveSettings


def batch(lengths: list[int], context: int = 8, parts: np.ndarray | None = None, rows: int = 8) -> PackedBatch:
    generator = np.random.default_rng(0)
    source = ArrayDocuments([generator.standard_normal((n, 4)).astype(np.float16) for n in lengths], parts=parts)
    return PackedSampler(source, np.arange(len(lengths)), context=context, rows=rows).in_order(0)


def test_next_sentences_stay_in_their_window() -> None:
    packed = batch([3, 4, 20])
    source_N, target_N = next_sentences(packed)
    row_id, document = packed.row_id_BS.reshape(-1), packed.document_BS.reshape(-1)
    assert (row_id[target_N] == row_id[source_N] + 1).all() and (document[target_N] == document[source_N]).all()
    assert len(source_N) == 2 + 3 + 19


def test_later_pieces_can_be_left_out() -> None:
    packed = batch([6], parts=np.array([0, 1, 2, 0, 0, 1]))
    assert packed.row_id_BS.reshape(-1)[next_sentences(packed, later_pieces=False)[1]].tolist() == [3, 4]


@pytest.mark.parametrize("in_document", [True, False])
def test_blocked_candidates_by_definition(in_document: bool) -> None:
    packed = batch([3, 5, 20], context=6)
    packed.content_BS[packed.row_id_BS == 2] = packed.content_BS[packed.row_id_BS == 5]  # a sentence that stands in two documents
    source_N, target_N = next_sentences(packed)
    blocked = blocked_candidates(packed, source_N, target_N, in_document=in_document)
    row_id, document, content = (ids.reshape(-1) for ids in (packed.row_id_BS, packed.document_BS, packed.content_BS))
    for i, (source, own) in enumerate(zip(source_N, target_N, strict=True)):
        for j, other in enumerate(target_N):
            same_document = document[other] == document[source]
            already_read = same_document and row_id[other] <= row_id[source]
            copy = content[other] == content[own]
            expected = i != j and (already_read or copy or (same_document and not in_document))
            assert blocked[i, j] == expected
    assert not blocked.diagonal().any() and blocked.any()


def test_infonce_known_values() -> None:
    target = F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), dim=-1)
    free = torch.zeros(5, 5, dtype=torch.bool)
    same = torch.ones(5, 7)
    log_temperature = torch.tensor(math.log(0.1))
    blind = infonce(same, same, free, log_temperature, temperature_min=0.01)
    assert float(blind) == pytest.approx(math.log(5), abs=1e-5)
    expected = F.cross_entropy(target @ target.T / 0.1, torch.arange(5))
    torch.testing.assert_close(infonce(3 * target, target, free, log_temperature, temperature_min=0.01), expected)
    all_blocked = ~torch.eye(5, dtype=torch.bool)
    assert float(infonce(same, same, all_blocked, log_temperature, temperature_min=0.01)) == pytest.approx(0.0, abs=1e-6)


def test_temperature_is_bounded_and_learned() -> None:
    x, free = torch.randn(4, 3), torch.zeros(4, 4, dtype=torch.bool)
    tiny = infonce(x, x.flip(0), free, torch.tensor(-20.0), temperature_min=0.05)
    torch.testing.assert_close(tiny, infonce(x, x.flip(0), free, torch.tensor(math.log(0.05)), temperature_min=0.05))
    log_temperature = torch.tensor(math.log(0.07), requires_grad=True)
    infonce(x, x.flip(0), free, log_temperature, temperature_min=0.05).backward()
    assert log_temperature.grad is not None and log_temperature.grad != 0


def test_mse_and_denoise_known_values() -> None:
    z = torch.arange(8.0).view(1, 4, 2)
    source, target = torch.tensor([0, 1]), torch.tensor([1, 2])
    assert float(mse(z, z, source, target, torch.tensor([1.0, 2.0]))) == pytest.approx((4 + 1) / 2)
    masked = torch.tensor([[False, True, False, False]])
    assert float(denoise(z + 3, z, masked)) == pytest.approx(9.0)


def test_span_mask_shares_and_lengths() -> None:
    segments = np.zeros((200, 100), dtype=np.int64)
    segments[:, 80:] = PAD
    masked = span_mask(segments, np.random.default_rng(0), ratio_min=0.15, ratio_max=0.30, mean_span=3.0)
    share = masked[:, :80].mean(1)
    assert not masked[:, 80:].any() and share.min() >= 0.14 and share.max() <= 0.31 and 0.21 < share.mean() < 0.24
    starts = (masked[:, 1:] & ~masked[:, :-1]).sum() + masked[:, 0].sum()
    assert 2.2 < masked.sum() / starts < 4.0
    short = span_mask(np.zeros((5, 2), dtype=np.int64), np.random.default_rng(0), ratio_min=0.15, ratio_max=0.30, mean_span=3.0)
    assert (short.sum(1) == 1).all()


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="all 0"):
        ObjectiveSettings(mse=0, infonce=0, denoise=0)
    with pytest.raises(UserError, match=r"mask_ratio_min .*mask_span"):
        ObjectiveSettings(mask_ratio_min=0.5, mask_span=0.5)
