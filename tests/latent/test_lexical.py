"""The lexical forecast: bags are what the formula says, words are read back from them, and their expectation is what training finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.config import settings_from
from lsm.corpus.sampler import ArrayDocuments
from lsm.errors import UserError
from lsm.latent.lexical import LexicalForecast, LexicalSpace
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import PretrainSettings
from lsm.latent.transformer import LatentTransformer
from lsm.lm.frozen import FrozenLM
from lsm.lm.tokens import log_odds
from lsm.training.loop import Trainer

DIM = 8
WORDS = ["ab", "cd", "ef", "gh"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return FrozenLM.load("stub")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Each holds a z and four other letters, the first ones more often."""
    generator = np.random.default_rng(0)
    return ["z" + "".join(LETTERS[int(26 * x * x) % 25] for x in generator.random(4)) for _ in range(400)]


@pytest.fixture(scope="module")
def forecast(lm: FrozenLM, texts: list[str]) -> LexicalForecast:
    made = LexicalForecast(4, LexicalSpace.of(lm)).requires_grad_(False)
    made.fit(lm, texts)
    return made


def test_bags_project_the_weighted_counts(lm: FrozenLM, forecast: LexicalForecast, texts: list[str]) -> None:
    weight_V, codebook_VK = forecast.weight_V.numpy(), forecast.codebook_VK.numpy()
    rows = lm.tokens.encode_exact(["aba", "", "c"])
    sums_NK = np.stack([weight_V[ids] @ codebook_VK[ids] if ids else np.zeros(lm.width) for ids in map(sorted, map(set, rows))])
    np.testing.assert_allclose(forecast.bags(rows).numpy(), sums_NK - forecast.mean_K.numpy(), atol=1e-5)
    assert forecast.weight_V[ord("z")] == 0 and forecast.share_V[ord("z")] == 1, "a token of every sentence tells nothing"
    # U spans what is read back: projecting twice changes nothing, up to the ridge.
    u_VK = ((forecast.share_V * forecast.weight_V)[:, None] * lm.head_VH.float()).numpy()
    strongest_V = u_VK @ np.linalg.svd(u_VK, full_matrices=False)[2][0]
    np.testing.assert_allclose(codebook_VK @ (codebook_VK.T @ strongest_V), strongest_V, atol=2e-3 * np.abs(strongest_V).max())
    everything = forecast.bags(lm.tokens.encode_exact(texts))
    np.testing.assert_allclose(everything.mean(0).numpy(), 0, atol=1e-5)


def test_a_forecast_of_the_mean_costs_one_and_the_right_one_less(lm: FrozenLM, forecast: LexicalForecast, texts: list[str]) -> None:
    rows = lm.tokens.encode_exact(texts)
    assert forecast.loss(torch.zeros(len(rows), 4), rows).item() == pytest.approx(1, abs=1e-4)
    with_a = [ids for ids in rows if ord("a") in ids]
    expected_K = forecast.bags(with_a).mean(0)
    known = (expected_K - forecast.bags(with_a)).square().sum(-1).mean() / forecast.square
    assert float(known) < forecast.loss(torch.zeros(len(with_a), 4), with_a).item()


def test_words_are_read_back_from_an_expected_bag(lm: FrozenLM, forecast: LexicalForecast, texts: list[str]) -> None:
    rows = [ids for ids in lm.tokens.encode_exact(texts) if ord("m") in ids]
    share_V = forecast.shares(forecast.bags(rows).mean(0, keepdim=True))[0]
    assert float(share_V[ord("m")]) > 2 * float(forecast.share_V[ord("m")])
    odds_V = log_odds(share_V, forecast.share_V)
    assert int(odds_V.argmax()) == ord("m") and (odds_V >= 0).all() and (odds_V <= 3).all()
    mean_V = forecast.shares(torch.zeros(1, lm.width))[0]
    seen = (forecast.share_V > 0) & (forecast.share_V < 1)
    torch.testing.assert_close(mean_V[seen], forecast.share_V[seen], atol=1e-5, rtol=1e-4)


def test_another_lm_is_refused(forecast: LexicalForecast) -> None:
    other = FrozenLM.load("stub")
    other.sha256 = "other"
    with pytest.raises(UserError, match="--lexical-lm"):
        forecast.attach(other)


def test_it_learns_what_words_come_and_comes_back_from_the_folder(tmp_path: Path, lm: FrozenLM) -> None:
    # Four words in a circle, each with a vector of its own: the next word is certain.
    generator = np.random.default_rng(0)
    of_word = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0][:4]
    first = generator.integers(0, 4, 40)
    order = [(start + np.arange(9)) % 4 for start in first]
    source = ArrayDocuments([of_word[words].astype(np.float16) for words in order], texts=[WORDS[w] for words in order for w in words])
    raw = {
        "steps": 80, "eval_every": 80, "save_every": 80, "threads": 1, "precision": "float32", "ema_decay": 0.8,
        "optimizer": {"lr": 1e-2, "warmup_steps": 5},
        "model": {"context": 8, "hidden": 32, "layers": 1, "heads": 2, "dropout": 0.0},
        "objectives": {"mse": 0, "infonce": 0, "denoise": 0, "lexical": 1},
        "data": {"batch_sentences": 64, "held_out_fraction": 0.2},
    }  # fmt: skip
    settings = settings_from(PretrainSettings, raw, origin="test")
    task = Pretraining(source, settings, dim=DIM, lexical_lm=lm)
    assert task.fingerprint()["lexical_lm"] == lm.sha256
    result = Trainer(task, settings, tmp_path / "run", quiet=True).train()["evaluation"]
    assert result["lexical"] < 0.2
    model = LatentTransformer.from_pretrained(tmp_path / "run")
    assert model.lexical is not None
    model.lexical.attach(lm)
    z_BSD = torch.from_numpy(source.vectors(0)[None].astype(np.float32))
    for s, bag_K in enumerate(model.forecast(z_BSD)[0]):
        score_V = model.lexical.scores(bag_K[None])[0]
        assert {chr(int(token)) for token in score_V.topk(2).indices} == set(WORDS[(first[0] + s + 1) % 4])
