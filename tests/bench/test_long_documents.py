"""Long documents in numbers: known texts give known shares, and a reader's surprise is its loss, whatever the window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lsm.bench import drift, long_documents
from lsm.bench.long_documents import Written
from lsm.lm.frozen import FrozenLM

AXES = np.eye(4, dtype=np.float32)


def test_known_texts_give_known_shares() -> None:
    once = Written(read=["Read before."], texts=["A b c d.", "A b c d!", "Read, before."], z_ND=AXES[:3], planned_ND=AXES[[0, 1, 3]])
    fresh = Written(read=[], texts=["E f g h i."], z_ND=AXES[:1], planned_ND=AXES[:1])
    row = long_documents.measure([once, fresh], resamples=50)
    # 10 words have 7 runs of four, one of them twice; 5 words have 2.
    assert row["repeated_4grams"] == pytest.approx(1 / 9) and row["said_before"] == pytest.approx(2 / 4)
    assert row["distinct_1"] == pytest.approx((6 + 5) / 15) and row["plan_cosine"] == pytest.approx(3 / 4)
    assert "nats_per_token" not in row and row["n_sentences"] == 4 and row["words_per_sentence"] == pytest.approx(15 / 4)
    low, high = row["intervals"]["said_before"]
    assert low == 0 and high == pytest.approx(2 / 3), "one document or the other is drawn twice"


def test_surprise_is_the_loss_of_the_tokens_after_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, read, texts = FrozenLM.load("stub"), ["What was read."], ["It goes on,", "and on."]
    nats, n_tokens = long_documents.surprise(lm, read, texts)
    before, after = lm.tokens.encode(["What was read. ", "It goes on, and on."])
    logits = lm.model(input_ids=torch.tensor([[lm.tokens.end_id, *before, *after]])).logits[0].log_softmax(-1)
    wanted = -sum(float(logits[len(before) + n, token]) for n, token in enumerate(after))
    assert n_tokens == len(after) and nats == pytest.approx(wanted, rel=1e-4)
    monkeypatch.setattr(long_documents, "_JUDGED_TOKENS", 4)
    assert long_documents.surprise(lm, read, texts)[0] == pytest.approx(wanted, rel=1e-4), "in pieces, each with all before it"


def test_drift_of_a_text_is_over_as_many_sentences_as_all_have() -> None:
    read_GSD = np.stack([AXES[[0, 0]], AXES[[1, 1]]])
    written = [Written(read=[], texts=["a", "b", "c"], z_ND=AXES[[0, 2, 2]]), Written(read=[], texts=["d", "e"], z_ND=AXES[[1, 2]])]
    real = [AXES[[0, 1, 0]], AXES[[1, 0, 1]]]
    rows = long_documents.drift_rows(written, real, read_GSD, AXES, is_real=False, resamples=0)
    assert sum(row["n"] for row in rows) == 4 and {row["way"] for row in rows} != {drift.REAL}
    assert rows[0]["cosine_truth"] == pytest.approx(1) and rows[-1]["cosine_truth"] == pytest.approx(0)
    nothing = [Written(read=[], texts=[], z_ND=AXES[:0])] * 2
    assert long_documents.drift_rows(nothing, real, read_GSD, AXES, is_real=False) == []
