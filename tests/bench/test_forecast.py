"""Judging a lexical forecast: a forecast that knows the words is told so, one that knows nothing stands at its controls, and the CLI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.bench import forecast
from lsm.bench.evaluation import MODEL
from lsm.bench.judged import Documents
from lsm.corpus.reader import Corpus
from lsm.latent.lexical import LexicalSpace
from lsm.latent.settings import ModelSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.lm.frozen import FrozenLM


@pytest.fixture
def documents(held_out_corpus: Path) -> Documents:
    return Documents(Corpus.open(held_out_corpus), [0, 1, 2])


@pytest.fixture
def lm() -> FrozenLM:
    return FrozenLM.load("stub")


@pytest.fixture
def model(documents: Documents, lm: FrozenLM) -> LatentTransformer:
    settings = ModelSettings(context=16, hidden=16, layers=0, heads=2)
    made = LatentTransformer(LatentConfig(dim=documents.corpus.dim, model=settings, lexical=LexicalSpace.of(lm)))
    assert made.lexical is not None
    made.lexical.fit(lm, [text for doc in range(3) for text in documents.corpus.texts(doc)])
    return made.eval()


def test_what_is_known_is_found_and_nothing_is_nothing(
    documents: Documents, model: LatentTransformer, lm: FrozenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "RECALL_AT", (2, 12))  # the texts have few letters
    rows = {row["predictor"]: row for row in forecast.judge(model, documents, lm, resamples=20)}
    assert rows[MODEL]["explained"] == pytest.approx(0, abs=1e-6), "an untrained forecast is the mean bag"
    frequent = rows["frequent words"]
    assert 0 < frequent["recall_at_2"] < frequent["recall_at_12"] <= 1

    def knows(z_BSD: torch.Tensor, *, section_BS: torch.Tensor) -> torch.Tensor:
        assert model.lexical is not None
        (doc,) = [doc for doc in range(3) if np.array_equal(documents.vectors()[doc].astype(np.float32), z_BSD[0].numpy())]
        bags = model.lexical.bags(lm.tokens.encode_exact(documents.corpus.texts(doc)))
        return torch.cat([bags[1:], bags[:1]])[None]

    monkeypatch.setattr(model, "forecast", knows)
    known = forecast.judge(model, documents, lm, resamples=20)[0]
    assert known["explained"] == pytest.approx(1, abs=0.1) and known["recall_at_2"] > frequent["recall_at_2"] + 0.1


def test_evaluate_judges_the_forecast_of_a_run(
    run_cli: Callable, tmp_path: Path, training_corpus: Path, held_out_corpus: Path, adapter_folder: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "steps: 2\neval_every: 2\nsave_every: 2\nthreads: 1\noptimizer: {warmup_steps: 1}\n"
        "model: {context: 8, hidden: 16, layers: 1, heads: 2}\nobjectives: {lexical: 1}\n"
        "data: {batch_sentences: 64, held_out_fraction: 0.2}\n"
    )
    trained = run_cli(
        "pretrain", "--corpus", training_corpus, "--out", tmp_path / "run", "--config", tmp_path / "tiny.yaml", "--lexical-lm", "stub"
    )
    assert trained.code == 0, trained.stderr
    common = ("evaluate", tmp_path / "run", "--corpus", held_out_corpus, "--resamples", 20, "--shuffled-positions", 0)
    outcome = run_cli(*common, "--json", tmp_path / "scores.json")  # the run knows whose words it forecasts
    assert outcome.code == 0, outcome.stderr
    rows = json.loads((tmp_path / "scores.json").read_text())["results"]["forecast"]
    assert rows[0]["predictor"] == MODEL and len(rows) == 5 and "Words of the next sentence" in outcome.stdout
    outcome = run_cli(
        *common, "--wording", 3, "--wording-lm", "stub", "--adapter", adapter_folder, "--forecast", 50,
        "--json", tmp_path / "words.json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    (example, *_) = json.loads((tmp_path / "words.json").read_text())["results"]["wording"]["examples"]
    assert example["model, words lifted"] != example["model"]
    refused = run_cli(*common, "--lexical-lm", "smollm2-135m-instruct")
    assert refused.code == 2 and "forecasts words of stub" in refused.stderr
