"""The lexical forecast: bags are what the formula says, words are read back from them, and their expectation is what training finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.codes.alphabet import Alphabet
from lsm.codes.signs import token_signs
from lsm.config import settings_from
from lsm.corpus.sampler import ArrayDocuments
from lsm.latent.lexical import LexicalForecast, LexicalSpace
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import PretrainSettings
from lsm.latent.transformer import LatentTransformer
from lsm.lm.tokens import ByteTokens, log_odds
from lsm.training.loop import Trainer

DIM = 8
WORDS = ["ab", "cd", "ef", "gh"]


@pytest.fixture
def forecast() -> LexicalForecast:
    made = LexicalForecast(4, LexicalSpace(vocabulary=300, vocabulary_sha256="made up", dims=512))
    generator = np.random.default_rng(0)
    made.fit([[7, *generator.integers(10, 300, 6)] for _ in range(200)])
    return made


def test_bags_are_weighted_sums_of_signs_over_distinct_tokens(forecast: LexicalForecast) -> None:
    rows = [[10, 11, 10], [], [12]]
    signs_VK = token_signs(0, 300, 512) / np.sqrt(512)
    weight_V = forecast.weight_V.numpy()
    expected = np.stack([weight_V[10] * signs_VK[10] + weight_V[11] * signs_VK[11], np.zeros(512), weight_V[12] * signs_VK[12]])
    np.testing.assert_allclose(forecast.bags(rows).numpy(), expected, atol=1e-6)
    assert forecast.weight_V[7] == 0, "a token of every sentence tells nothing"
    assert forecast.share_V[7] == 1


def test_a_forecast_of_nothing_costs_one_and_the_mean_costs_least(forecast: LexicalForecast) -> None:
    generator = np.random.default_rng(0)
    rows = [[7, *generator.integers(10, 300, 6)] for _ in range(200)]
    state_NH = torch.zeros(len(rows), 4)
    assert forecast.loss(state_NH, rows).item() == pytest.approx(1, abs=0.05)
    with torch.no_grad():
        forecast.project.bias.copy_(forecast.bags(rows).mean(0))
        least = forecast.loss(state_NH, rows).item()
        forecast.project.bias.mul_(1.5)
        assert least < forecast.loss(state_NH, rows).item()


def test_words_are_read_back_from_an_expected_bag(forecast: LexicalForecast) -> None:
    rows = [[20, 21], [20, 22], [20, 23], [20, 24]]
    share_V = forecast.shares(forecast.bags(rows).mean(0, keepdim=True))[0]
    assert int(share_V.argmax()) == 20 and 0.75 < float(share_V[20]) <= 1
    assert all(0.05 < float(share_V[token]) < 0.3 for token in (21, 22, 23, 24))
    others = np.setdiff1d(np.arange(10, 300), [20, 21, 22, 23, 24])
    assert float(share_V[others].mean()) < 0.01
    odds_V = log_odds(share_V, forecast.share_V)
    assert int(odds_V.argmax()) == 20 and (odds_V >= 0).all() and (odds_V <= 3).all()


def test_it_learns_what_words_come_and_comes_back_from_the_folder(tmp_path: Path) -> None:
    # Four words in a circle, each with a vector of its own: the next word is certain.
    generator = np.random.default_rng(0)
    of_word = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0][:4]
    first = generator.integers(0, 4, 40)
    order = [(start + np.arange(9)) % 4 for start in first]
    source = ArrayDocuments([of_word[words].astype(np.float16) for words in order], texts=[WORDS[w] for words in order for w in words])
    raw = {
        "steps": 60, "eval_every": 60, "save_every": 60, "threads": 1, "precision": "float32", "ema_decay": 0.8,
        "optimizer": {"lr": 1e-2, "warmup_steps": 5},
        "model": {"context": 8, "hidden": 32, "layers": 1, "heads": 2, "dropout": 0.0},
        "objectives": {"mse": 0, "infonce": 0, "denoise": 0, "lexical": 1, "lexical_dims": 128},
        "data": {"batch_sentences": 64, "held_out_fraction": 0.2},
    }  # fmt: skip
    settings = settings_from(PretrainSettings, raw, origin="test")
    alphabet = Alphabet(ByteTokens())
    task = Pretraining(source, settings, dim=DIM, alphabet=alphabet)
    assert task.fingerprint()["alphabet"] == alphabet.sha256
    result = Trainer(task, settings, tmp_path / "run", quiet=True).train()["evaluation"]
    assert result["lexical"] < 0.2
    model = LatentTransformer.from_pretrained(tmp_path / "run")
    assert model.lexical is not None
    z_BSD = torch.from_numpy(source.vectors(0)[None].astype(np.float32))
    for s, bag_K in enumerate(model.forecast(z_BSD)[0]):
        share_V = model.lexical.shares(bag_K[None])[0]
        told = {chr(int(token)) for token in share_V.topk(2).indices}
        assert told == set(WORDS[(first[0] + s + 1) % 4])
