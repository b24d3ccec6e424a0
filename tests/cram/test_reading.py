"""What a reading says of vectors, against the LM itself; and vectors in few bits."""

from __future__ import annotations

import pytest
import torch

from lsm.bench.byte_references import lm_bits
from lsm.bench.cram import unconditioned
from lsm.bench.cram_bits import HEADER_BYTES, quantised, stored_bytes
from lsm.cram.reading import Reading
from lsm.lm.frozen import FrozenLM
from lsm.lm.loss import frozen_cross_entropy, frozen_prediction
from lsm.lm.tokens import n_agreeing


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return FrozenLM.load("stub")


@pytest.fixture
def vectors_BPH(lm) -> torch.Tensor:
    return torch.randn(3, 2, lm.width, generator=torch.Generator().manual_seed(1)) * 3


def test_prediction_is_cross_entropy_and_argmax(lm):
    hidden_NH = torch.randn(700, lm.width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets_N = lm.logits(hidden_NH).argmax(-1).detach()
    targets_N[::2] = 5
    loss_N, right_N = frozen_prediction(hidden_NH, lm.head_VH, targets_N)
    assert torch.equal(loss_N, frozen_cross_entropy(hidden_NH, lm.head_VH, targets_N))
    assert torch.equal(right_N, lm.logits(hidden_NH).argmax(-1) == targets_N) and right_N[1::2].all()
    (gradient,) = torch.autograd.grad(loss_N.sum(), hidden_NH)
    reference = torch.nn.functional.cross_entropy(hidden_NH @ lm.head_VH.T, targets_N, reduction="sum")
    torch.testing.assert_close(gradient, torch.autograd.grad(reference, hidden_NH)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["autoregressive", "one-pass"])
def test_what_decodes_greedily_is_right_when_teacher_forced(lm, vectors_BPH, form):
    reading = Reading(lm, form)
    rows = reading.decode(vectors_BPH, [9, 7, 5])
    told = reading.told(vectors_BPH, rows)
    assert told.n_right_B.tolist() == [len(row) for row in rows]
    rows[0][3] = (rows[0][3] + 1) % 256
    again = reading.told(vectors_BPH, rows).n_right_B.tolist()
    assert again[0] < len(rows[0]) and again[1:] == [len(row) for row in rows[1:]]


@pytest.mark.parametrize("form", ["autoregressive", "one-pass"])
def test_texts_side_by_side_are_read_as_one_by_one(lm, vectors_BPH, form):
    reading = Reading(lm, form)
    rows, turns = [[1, 2, 3, 4, 5, 6], [9, 8], [7]], [0, 11, 15]
    told = reading.told(vectors_BPH, rows, turns)
    again = reading.told(vectors_BPH, rows, [0, 3, 7])  # eight sentences take turns
    torch.testing.assert_close(told.divergence_B, again.divergence_B, rtol=0, atol=0)
    assert not reading.told(vectors_BPH, rows).divergence_B.any()
    for b, row in enumerate(rows):
        alone = reading.told(vectors_BPH[b : b + 1], [row], turns[b : b + 1])
        torch.testing.assert_close(told.loss_B[b : b + 1], alone.loss_B)
        torch.testing.assert_close(told.divergence_B[b : b + 1], alone.divergence_B, rtol=1e-3, atol=1e-4)
        assert told.n_right_B[b] == alone.n_right_B[0]


def test_the_loss_of_tokens_behind_vectors_is_the_lms(lm, vectors_BPH):
    ids_BT, mask_BT = torch.tensor([[1, 2, 3]] * 3), torch.ones(3, 3, dtype=torch.bool)
    told = Reading(lm, start=False).told(vectors_BPH, ids_BT.tolist())
    torch.testing.assert_close(told.loss_B, lm.prefix_loss(vectors_BPH, ids_BT, mask_BT))


def test_a_start_token_stands_before_the_vectors(lm, vectors_BPH):
    end_H = lm.embed(torch.tensor([lm.tokens.end_id]))[0]
    assert torch.equal(Reading(lm).prefix(vectors_BPH)[:, 1:], vectors_BPH)
    assert torch.equal(Reading(lm).prefix(vectors_BPH)[1, 0], end_H)
    assert torch.equal(Reading(lm, start=False).prefix(vectors_BPH), vectors_BPH)


def test_the_divergence_of_doing_nothing_is_small_and_of_a_loud_vector_is_not(lm):
    reading = Reading(lm)
    quiet, loud = (reading.told(torch.full((1, 1, lm.width), value), [[1]], [2]).divergence_B.item() for value in (1e-6, 8.0))
    assert 0 <= quiet < loud


def test_one_pass_reads_none_of_the_tokens(lm, vectors_BPH):
    reading = Reading(lm, "one-pass")
    first, other = (reading.hidden(vectors_BPH, torch.tensor([row] * 3)) for row in ([1, 2, 3, 4], [9, 9, 9, 9]))
    assert torch.equal(first, other)


def test_agreeing_tokens_stop_at_the_first_error():
    assert n_agreeing([1, 2, 3], [1, 2, 3]) == 3
    assert n_agreeing([1, 9, 3], [1, 2, 3]) == 1
    assert n_agreeing([1], [1, 2, 3]) == 1


def test_nats_without_a_vector_are_those_of_the_byte_reference(lm):
    text = "Fellow citizens"
    nats_T, right_T = unconditioned(lm, [*lm.tokens.encode_exact([text])[0], lm.tokens.end_id])
    assert nats_T.sum() / torch.tensor(2.0).log().item() == pytest.approx(lm_bits(lm, [text])[0], rel=1e-5)
    assert right_T.dtype == bool and len(right_T) == len(text) + 1


@pytest.mark.parametrize(("bits", "worst"), [(8, 1 / 127), (6, 1 / 31), (4, 1 / 7)])
def test_quantised_vectors_are_within_half_a_level_in_each_group(bits, worst):
    vectors_PH = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    vectors_PH[0, :64] *= 100  # another group's loudness does not matter
    off = (quantised(vectors_PH, bits, 64) - vectors_PH).abs().flatten()
    largest = torch.nn.functional.pad(vectors_PH.flatten(), (0, 56)).view(-1, 64).abs().amax(1).repeat_interleave(64)[:200]
    assert (off <= largest * worst * 0.502).all()
    assert quantised(torch.zeros(1, 70), bits, 64).eq(0).all()


def test_bytes_count_entries_scales_and_header():
    assert stored_bytes(576, 8, 64) == 576 + 9 * 2 + HEADER_BYTES
    assert stored_bytes(100, 4, 64) == 50 + 2 * 2 + HEADER_BYTES
    assert stored_bytes(100, 6, 64) == 75 + 2 * 2 + HEADER_BYTES
    assert stored_bytes(100, 32, 64) == 400 + HEADER_BYTES
