"""Promises of `lsm evaluate` on longer windows: same places for every length, windows of exactly the length, sections where they belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.bench import evaluation, windows
from lsm.bench.controls import other_documents_context, random_places, sections_of, shuffled_order, truncated
from lsm.bench.judged import Documents, Judged
from lsm.corpus.reader import Corpus
from lsm.encode.encoder import load_encoder
from lsm.latent.settings import ModelSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer


def judged(corpus: Path) -> Judged:
    opened = Corpus.open(corpus)
    return Judged(Documents(opened, range(opened.n_documents)), None, [])


@pytest.mark.parametrize("positions", ["rope", "rope-2d", "alibi"])
def test_every_length_is_judged_on_the_same_places(positions: str, held_out_corpus: Path) -> None:
    torch.manual_seed(0)
    encoder, settings = load_encoder("stub"), ModelSettings(context=3, hidden=32, layers=1, heads=2, positions=positions)
    model = LatentTransformer(LatentConfig(dim=encoder.dim, model=settings)).eval()
    with torch.no_grad():
        model.correction.weight.normal_(std=0.3)
    rows = windows.longer_windows(model, judged(held_out_corpus), [2, 6], positions=12, resamples=20)
    expected = [(3, "–"), (2, "–"), (6, "–")] + ([] if positions == "alibi" else [(6, "ntk"), (6, "linear")])
    assert [(row["length"], row["rope_scaling"]) for row in rows] == expected
    assert {row["n"] for row in rows} == {12} and rows[0]["gain_mrr"] == 0
    for row in rows:
        assert row["gain_cosine"] == pytest.approx(row["cosine"] - rows[0]["cosine"], abs=1e-9)
    z_SD = judged(held_out_corpus).held_out.vectors()[0].astype(np.float32)
    one = truncated(evaluation.rows_predictor(model.widened(6)), context=6, places=lambda z_SD: np.array([7]))(z_SD)[7]
    np.testing.assert_allclose(one, model.widened(6).predict(torch.from_numpy(z_SD[None, 2:8]))[0, -1], rtol=1e-4, atol=1e-5)


def test_sections_stay_with_their_places() -> None:
    documents = [np.random.default_rng(n).standard_normal((9, 2)).astype(np.float32) for n in range(2)]
    sections = sections_of(documents, [np.arange(9) // 2, np.arange(9) // 3])
    seen: list[np.ndarray] = []

    def predict_rows(z_BSD: np.ndarray, section_BS: np.ndarray) -> np.ndarray:
        seen.append(section_BS)
        return z_BSD

    truncated(predict_rows, context=4, places=lambda z_SD: np.array([1, 7]), sections=sections)(documents[1])
    assert seen[0].tolist() == [[0, 0, 0, 0], [1, 1, 2, 2]]
    shuffled_order(predict_rows, context=4, places=random_places(99, 5, 0), seed=0, sections=sections)(documents[0])
    assert sorted(seen[1].tolist()) == [[s // 2 for s in range(end - 3, end + 1)] for end in range(4, 8)]
    other = other_documents_context(lambda z_SD, section_S: predict_rows(z_SD[None], section_S)[0], documents, sections=sections)
    assert np.array_equal(other(documents[0]), documents[1]) and np.array_equal(seen[2], np.arange(9) // 2)


def test_the_command_line(run_cli: Callable, model_folder: Path, held_out_corpus: Path, tmp_path: Path) -> None:
    asked = ["evaluate", model_folder, "--corpus", held_out_corpus, "--resamples", 0, "--shuffled-positions", 6]
    outcome = run_cli(*asked, "--context-lengths", "4", "--context", 12, "--rope-scaling", "ntk", "--json", tmp_path / "scores.json")
    assert outcome.code == 0, outcome.stderr
    results = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert [row["length"] for row in results["windows"]] == [8, 4] and "Windows of other lengths (rope)" in outcome.stdout
    for options, said in (
        (["--context-lengths", "5000"], "--context-lengths 5000: no judged document"),
        (["--context-lengths", "0"], "at least 2"),
        (["--context", 1], "--context 1"),
        (["--rope-scaling", "ntk"], "needs --context"),
    ):
        outcome = run_cli(*asked, *options)
        assert outcome.code == 2 and said in outcome.stderr
