"""Promises of the sampler: every step of every document once an epoch, rows keep documents apart, order from (seed, index) alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lsm.corpus.sampler import PAD, ArrayDocuments, PackedBatch, PackedSampler, permutation, split_documents, summary


def documents(lengths: list[int], dim: int = 4) -> ArrayDocuments:
    generator = np.random.default_rng(0)
    return ArrayDocuments([generator.standard_normal((n, dim)).astype(np.float16) for n in lengths])


def steps_of(batch: PackedBatch) -> list[tuple[int, int]]:
    follows = (batch.segment_BS[:, 1:] == batch.segment_BS[:, :-1]) & (batch.segment_BS[:, 1:] != PAD)
    row, place = np.nonzero(follows)
    return list(zip(batch.row_id_BS[row, place].tolist(), batch.row_id_BS[row, place + 1].tolist(), strict=True))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(2, 17))
@hypothesis_settings(max_examples=60, deadline=None)
def test_every_step_exactly_once(lengths: list[int], context: int) -> None:
    source = documents(lengths)
    sampler = PackedSampler(source, np.arange(len(lengths)), context=context, rows=3)
    seen: list[tuple[int, int]] = []
    for index in range(-(-sampler.n_rows // 3)):
        batch = sampler.in_order(index)
        assert batch.z_BSD.shape[1] <= context
        there = batch.segment_BS != PAD
        for ids in (batch.document_BS, batch.row_id_BS, batch.part_BS):
            assert ((ids != PAD) == there).all()
        assert (there[:, 1:] <= there[:, :-1]).all(), "padding stands at the end"
        for row, place in zip(*np.nonzero(there), strict=True):
            doc = int(batch.document_BS[row, place])
            sentence = int(batch.row_id_BS[row, place] - source.starts[doc])
            assert (batch.z_BSD[row, place] == source.vectors(doc)[sentence].astype(np.float32)).all()
        seen += steps_of(batch)
    expected = [(int(start) + k, int(start) + k + 1) for start, n in zip(source.starts, lengths, strict=False) for k in range(n - 1)]
    assert sorted(seen) == expected


def test_an_epoch_shows_every_row_once_and_the_order_is_pure() -> None:
    source = documents([9] * 24)
    make = lambda seed: PackedSampler(source, np.arange(24), context=9, rows=4, seed=seed)  # noqa: E731
    sampler = make(3)
    assert (sampler.n_rows, sampler.n_batches) == (24, 6)
    epochs = [[int(doc) for index in range(6) for doc in sampler.batch(6 * epoch + index).document_BS[:, 0]] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24)) and epochs[0] != epochs[1]
    fresh = make(3).batch(8)
    assert (fresh.document_BS == sampler.batch(8).document_BS).all()
    assert (fresh.document_BS != make(4).batch(8).document_BS).any()


def test_packing_is_tight() -> None:
    lengths = np.random.default_rng(1).integers(2, 90, 400).tolist()
    sampler = PackedSampler(documents(lengths), np.arange(400), context=64, rows=8)
    assert sampler.filled > 0.95
    counts = summary(sampler)
    assert counts["documents"] == 400 and counts["sentences"] == sum(lengths)


def test_permutation_known_values() -> None:
    assert permutation(8, seed=1, epoch=0).tolist() == permutation(8, seed=1, epoch=0).tolist()
    assert sorted(permutation(100, seed=5, epoch=7).tolist()) == list(range(100))
    assert permutation(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_split_is_by_id_alone() -> None:
    ids = [f"speech {n}" for n in range(2000)]
    train, held_out = split_documents(ids, 0.1)
    assert sorted([*train, *held_out]) == list(range(2000)) and 150 < len(held_out) < 250
    _, held_out_backwards = split_documents(ids[::-1], 0.1)
    assert {ids[n] for n in held_out} == {ids[::-1][n] for n in held_out_backwards}
    _, held_out_more = split_documents([*ids, "one more"], 0.1)
    assert set(held_out) <= set(held_out_more)


def test_small_corpora_have_both_sides() -> None:
    for fraction in (0.001, 0.999):
        train, held_out = split_documents(["a", "b", "c"], fraction)
        assert len(train) >= 1 and len(held_out) >= 1
    assert len(split_documents(["a"], 0.001)[0]) == 1


def test_equal_vectors_have_equal_content() -> None:
    source = ArrayDocuments([np.array([[1, 2], [3, 4], [1, 2]], dtype=np.float16), np.array([[1, 2], [2, 1]], dtype=np.float16)])
    batch = PackedSampler(source, np.arange(2), context=3, rows=2).in_order(0)
    content = {
        (int(d), int(r)): int(c) for d, r, c in zip(batch.document_BS.flat, batch.row_id_BS.flat, batch.content_BS.flat, strict=True)
    }
    assert content[0, 0] == content[0, 2] == content[1, 3]
    assert len({content[0, 0], content[0, 1], content[1, 4]}) == 3
