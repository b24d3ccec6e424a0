"""Roll-outs: known ones give known numbers, spans cover every step, and too short documents are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lsm.bench import drift

AXES = np.eye(4, dtype=np.float32)


def rollouts_of(model_GND: np.ndarray, real_GND: np.ndarray, read_GSD: np.ndarray) -> drift.Rollouts:
    ways = {drift.MODEL: model_GND, drift.REAL: real_GND, drift.STANDING: np.repeat(read_GSD[:, -1:], real_GND.shape[1], axis=1)}
    return drift.Rollouts(read_GSD, ways, np.concatenate([*read_GSD, *real_GND]))


def test_known_rollouts() -> None:
    read_GSD = np.stack([AXES[[0, 0]], AXES[[1, 1]]])
    real_GND = np.stack([AXES[[0, 1, 0]], AXES[[1, 0, 1]]])
    model_GND = np.stack([AXES[[0, 2, 2]], AXES[[1, 2, 2]]])  # true once, then off to where nothing is, and stays
    rows = {(row["way"], row["steps"]): row for row in drift.measure(rollouts_of(model_GND, real_GND, read_GSD), resamples=20)}
    first, rest = rows[drift.MODEL, "1"], rows[drift.MODEL, "2–3"]
    assert first["cosine_truth"] == first["cosine_start"] == first["cosine_before"] == pytest.approx(1)
    assert first["l2_nearest"] == pytest.approx(0, abs=1e-3)
    assert rest["cosine_truth"] == rest["cosine_start"] == pytest.approx(0, abs=1e-6)
    assert rest["cosine_before"] == pytest.approx(0.5) and rest["l2_nearest"] == pytest.approx(2**0.5)
    assert rest["effective_rank"] == 1 and rows[drift.REAL, "2–3"]["cosine_truth"] == pytest.approx(1)
    assert rows[drift.STANDING, "2–3"]["cosine_before"] == pytest.approx(1)
    assert rest["intervals"]["cosine_truth"] == pytest.approx([0, 0], abs=1e-6)


def test_the_document_itself_is_not_its_own_nearest() -> None:
    read_GSD, real_GND = AXES[None, [0]], AXES[None, [1, 2]]
    rows = drift.measure(rollouts_of(real_GND, real_GND, read_GSD), resamples=0)
    assert [row["l2_nearest"] for row in rows if row["way"] == drift.REAL] == pytest.approx([2**0.5] * 2)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 77, 1200])
def test_spans_cover_every_step_once(n: int) -> None:
    z_GND = np.random.default_rng(n).standard_normal((2, n, 4)).astype(np.float32)
    z_GND /= np.linalg.norm(z_GND, axis=-1, keepdims=True)
    rows = [row for row in drift.measure(rollouts_of(z_GND, z_GND, z_GND[:, :1]), resamples=0) if row["way"] == drift.MODEL]
    assert sum(row["n"] for row in rows) == 2 * n and rows[-1]["last_step"] == n
    weights = [row["n"] / (2 * n) for row in rows]
    assert np.dot(weights, [row["cosine_truth"] for row in rows]) == pytest.approx(1, abs=1e-5)


def test_evaluate_rolls_out(run_cli: Callable, model_folder: Path, held_out_corpus: Path, tmp_path: Path) -> None:
    asked = ["evaluate", model_folder, "--corpus", held_out_corpus, "--resamples", 0, "--shuffled-positions", 0, "--rollout-read", 3]
    outcome = run_cli(*asked, "--rollout", 4, "--json", tmp_path / "scores.json", "--plots", tmp_path)
    assert outcome.code == 0, outcome.stderr
    rows = json.loads((tmp_path / "scores.json").read_text())["results"]["drift"]
    assert {row["way"] for row in rows} == {drift.MODEL, drift.REAL, drift.STANDING} and rows[0]["n_documents"] > 1
    assert all(row["cosine_truth"] == pytest.approx(1) for row in rows if row["way"] == drift.REAL)
    assert (tmp_path / "drift.png").stat().st_size > 1000
    refused = run_cli(*asked, "--rollout", 400)
    assert refused.code == 2 and "--rollout 400: no judged document has 403 sentences" in refused.stderr
