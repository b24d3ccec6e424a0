"""Promises of the objectives: known values, and negatives without what has been read."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lsm.corpus.sampler import PAD, ArrayDocuments, PackedBatch, PackedSampler
from lsm.errors import UserError
from lsm.latent.objectives import blocked_candidates, contrast_logits, denoise, infonce, mse, next_sentences, span_mask
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
    log_temperature = torch.tensor(math.log(0.1))
    logits = contrast_logits(3 * target, target, log_temperature, temperature_min=0.01)
    torch.testing.assert_close(logits, target @ target.T / 0.1)
    torch.testing.assert_close(infonce(logits, free), F.cross_entropy(target @ target.T / 0.1, torch.arange(5)))
    blind = torch.zeros(5, 5)
    assert float(infonce(blind, free)) == pytest.approx(math.log(5), abs=1e-5)
    all_blocked = ~torch.eye(5, dtype=torch.bool)
    assert float(infonce(blind, all_blocked)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("focus", [0.3, 1.0])
def test_focus_is_the_generalised_cross_entropy(focus: float) -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    free = torch.zeros(6, 6, dtype=torch.bool)
    expected = ((1 - logits.softmax(-1).diagonal() ** focus) / focus).mean()
    torch.testing.assert_close(infonce(logits, free, focus=focus), expected)
    torch.testing.assert_close(infonce(logits, free, focus=1e-4), infonce(logits, free), atol=1e-3, rtol=0)


def test_focus_lets_hopeless_targets_go() -> None:
    near, hopeless = torch.tensor([[0.0, 0.5]]), torch.tensor([[0.0, 12.0]])
    pull = {}
    for focus in (0.0, 0.5):
        for name, row in (("near", near), ("hopeless", hopeless)):
            logits = row.clone().requires_grad_()
            infonce(logits.expand(2, 2)[:1], torch.zeros(1, 2, dtype=torch.bool), focus=focus).backward()
            assert logits.grad is not None
            pull[focus, name] = -float(logits.grad[0, 0])
    assert pull[0.0, "hopeless"] > pull[0.0, "near"] and pull[0.5, "hopeless"] < 0.1 * pull[0.5, "near"]


def test_temperature_is_bounded_and_learned() -> None:
    x = torch.randn(4, 3)
    tiny = contrast_logits(x, x.flip(0), torch.tensor(-20.0), temperature_min=0.05)
    torch.testing.assert_close(tiny, contrast_logits(x, x.flip(0), torch.tensor(math.log(0.05)), temperature_min=0.05))
    log_temperature = torch.tensor(math.log(0.07), requires_grad=True)
    infonce(contrast_logits(x, x.flip(0), log_temperature, temperature_min=0.05), torch.zeros(4, 4, dtype=torch.bool)).backward()
    assert log_temperature.grad is not None and log_temperature.grad != 0


def test_the_loss_of_no_query_is_nothing() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    for focus in (0.0, 0.5):
        assert (
            float(infonce(logits, torch.zeros(0, 3, dtype=torch.bool), focus=focus, own_N=torch.zeros(0, dtype=torch.int64)).detach()) == 0
        )


def test_mse_and_denoise_known_values() -> None:
    z = torch.arange(8.0).view(1, 4, 2)
    assert float(mse(z[0, :2], z[0, 1:3], torch.tensor([1.0, 2.0]))) == pytest.approx((4 + 1) / 2)
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
    with pytest.raises(UserError, match=r"focus 2.*in_document 1"):
        ObjectiveSettings(focus=2, in_document=1, in_document_negatives=False)
    with pytest.raises(UserError, match=r"mask_ratio_min .*mask_span"):
        ObjectiveSettings(mask_ratio_min=0.5, mask_span=0.5)
