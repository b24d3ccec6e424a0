"""The round-trip scoreboard with decoders whose scores are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lsm.bench.roundtrip import Board, Sample, add_noise, cosines, length_buckets, measure

DESIGN_COLUMNS = {
    "encoder", "decoder", "residual", "residual_dims", "domain", "n", "exact_match", "bleu", "token_f1", "chrf", "cosine",
    "cosine_independent", "certified", "false_certificates", "bytes_per_sentence", "utf8_bytes", "zstd_bytes", "encoder_calls",
    "sentences_per_second",
}  # fmt: skip
TEXTS = [f"Sentence number {n} speaks of the {word} state of the union." for n, word in enumerate(["happy", "sad", "strong", "weak"] * 5)]
TEXTS[3] = "A short one."


def encode(texts: Sequence[str]) -> np.ndarray:
    """Letter counts: equal texts, equal vectors."""
    return np.stack([np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256) for text in texts]).astype(np.float32)


class Lookup:
    """Knows every sentence of the sample by its vector."""

    name = "lookup"
    encoder_calls_per_sentence = 1.0

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        known = encode(TEXTS)
        return [TEXTS[int(((known - z) ** 2).sum(1).argmin())] if z.any() else "" for z in z_BD]


class Retrieval(Lookup):
    name = "retrieval"
    encoder_calls_per_sentence = 0.0


@pytest.fixture
def sample() -> Sample:
    return Sample(TEXTS, np.arange(20) // 4, encode(TEXTS), encode_seconds=0.0, encoder="letters", domain="test")


def test_a_perfect_decoder_scores_perfectly_and_its_controls_do_not(sample: Sample) -> None:
    trip = measure(Board(sample, encode=encode, independent=encode, resamples=20), [Lookup()])
    own, shuffled, zero = trip.rows
    assert set(own) >= DESIGN_COLUMNS
    assert own["exact_match"] == 1 and own["bleu"] == pytest.approx(100) and own["token_f1"] == 1 and own["cosine"] == pytest.approx(1)
    assert own["cosine_independent"] == pytest.approx(1) and own["certified"] is None
    assert shuffled["vector"] == "shuffled" and shuffled["exact_match"] == 0 < shuffled["token_f1"]
    assert zero["sentences_per_second"] is None and own["sentences_per_second"] > 0
    assert zero["vector"] == "zero" and zero["cosine"] == zero["bleu"] == zero["token_f1"] == 0
    assert own["bytes_per_sentence"] == 512 and own["utf8_bytes"] == np.mean([len(text) for text in TEXTS])
    assert own["intervals"]["exact_match"] == [1, 1] and shuffled["intervals"]["bleu"][0] <= shuffled["bleu"]
    assert trip.texts["lookup"] == TEXTS


def test_retrieval_has_no_broken_inputs_and_no_independent_encoder_leaves_the_column_empty(sample: Sample) -> None:
    trip = measure(Board(sample, encode=encode, independent=None, resamples=0), [Retrieval()])
    (row,) = trip.rows
    assert row["label"] == "retrieval" and row["cosine_independent"] is None and row["encoder_calls"] == 0


def test_length_buckets_add_up(sample: Sample) -> None:
    trip = measure(Board(sample, encode=encode, independent=None, resamples=0), [Lookup()], controls=False)
    assert [row["length"] for row in trip.by_length] == ["1–50", "51–100"]
    assert sum(row["n"] for row in trip.by_length) == 20
    assert sum(int(inside.sum()) for _, inside in length_buckets(["x" * n for n in (1, 50, 51, 150, 200, 201, 999)])) == 7


def test_noise_has_the_angle_it_says_and_keeps_the_length() -> None:
    z = np.random.default_rng(0).standard_normal((50, 384)).astype(np.float32) * 3
    noisy = add_noise(z, 0.5, seed=1)
    np.testing.assert_allclose(np.linalg.norm(noisy, axis=1), np.linalg.norm(z, axis=1), rtol=1e-5)
    assert cosines(noisy, z).mean() == pytest.approx(1 / np.sqrt(1.25), abs=0.02)
    assert add_noise(z, 0.0, seed=1) is z


def test_noise_lowers_the_cosine_but_is_judged_against_the_clean_vector(sample: Sample) -> None:
    clean = measure(Board(sample, encode=encode, independent=None, resamples=0), [Lookup()], controls=False).rows[0]
    noisy = measure(Board(sample, encode=encode, independent=None, noise=3.0, resamples=0), [Lookup()], controls=False).rows[0]
    assert noisy["noise"] == 3.0 and noisy["exact_match"] < clean["exact_match"]
