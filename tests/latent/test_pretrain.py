"""Promises of pretraining: it learns what can be learned, beats its control there, resumes bit for bit, and every shipped config parses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsm.config import load_settings, settings_from, to_dict
from lsm.corpus.sampler import ArrayDocuments
from lsm.errors import UserError
from lsm.files import sha256_file
from lsm.latent.diagnostics import (
    collapse,
    effective_rank,
    l2_to_nearest,
    l2_to_truth,
    mean_pairwise_cosine,
    pca_spectrum,
    principal_dims,
)
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import PretrainSettings
from lsm.latent.trained_on import read_trained_on, text_key
from lsm.latent.transformer import LatentTransformer
from lsm.training.loop import Trainer
from lsm.training.metrics import read_metrics

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("latent-*.yaml"))
DIM = 16


def spirals(n_documents: int = 60) -> ArrayDocuments:
    """Documents whose next vector is a fixed rotation of the last: no mean of the past predicts it, a layer does."""
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0]
    documents = []
    for n in range(n_documents):
        vectors = [generator.standard_normal(DIM)]
        for _ in range(6 + n % 9):
            vectors.append(rotation @ vectors[-1])
        documents.append((np.array(vectors) / np.linalg.norm(vectors[0])).astype(np.float16))
    return ArrayDocuments(documents)


def settings(**changes: Any) -> PretrainSettings:
    raw: dict[str, Any] = {
        "steps": 60, "eval_every": 60, "save_every": 20, "threads": 1, "precision": "float32", "ema_decay": 0.8,
        "optimizer": {"lr": 3e-3, "warmup_steps": 5},
        "model": {"context": 8, "hidden": 32, "layers": 1, "heads": 2, "dropout": 0.0},
        "data": {"batch_sentences": 64, "held_out_fraction": 0.2},
    }  # fmt: skip
    return settings_from(PretrainSettings, raw | changes, origin="test")


def task(config: PretrainSettings, **options: Any) -> Pretraining:
    return Pretraining(spirals(), config, dim=DIM, encoder={"name": "stub", "dim": DIM}, **options)


def test_it_learns_and_leaves_a_loadable_model(tmp_path: Path) -> None:
    config = settings()
    result = Trainer(task(config), config, tmp_path / "run", quiet=True).train()["evaluation"]
    assert result["recall_10"] > result["control_recall_10"] + 0.1 and result["median_rank"] < result["control_median_rank"]
    assert {"loss", "mse", "infonce", "denoise", "cosine", "l2", "effective_rank", "pairwise_cosine"} <= set(result)
    model = LatentTransformer.from_pretrained(tmp_path / "run")
    source = spirals()
    z_BSD = torch.from_numpy(source.vectors(0)[None].astype(np.float32))
    better = (model.predict(z_BSD)[0, :-1] * z_BSD[0, 1:]).sum(-1).mean()
    assert better > 0.5 > float((z_BSD[0, :-1] * z_BSD[0, 1:]).sum(-1).mean())
    card = (tmp_path / "run/final/README.md").read_text()
    assert "stub" in card and "recall_10" in card


@pytest.mark.parametrize(
    "goals",
    [
        {"mse": 1, "infonce": 0, "denoise": 0},
        {"mse": 0, "infonce": 1, "denoise": 0},
        {"mse": 0, "infonce": 0, "in_document": 1, "focus": 0.5, "denoise": 0},
        {"mse": 0, "infonce": 0, "denoise": 1},
    ],
)
def test_each_objective_alone_falls(tmp_path: Path, goals: dict[str, float]) -> None:
    config = settings(
        objectives=goals, data={"batch_sentences": 64, "held_out_fraction": 0.2, "context_dropout": 0.05, "noise": 0.01}, steps=40
    )
    trained = task(config)
    before = trained.evaluate()["loss"]
    result = Trainer(trained, config, tmp_path / "run", quiet=True).train()["evaluation"]
    assert result["loss"] < before


@pytest.mark.parametrize("kind", ["energy", "flow", "diffusion"])
def test_sampling_heads_alone_fall_and_say_what_reaches_the_trunk(tmp_path: Path, kind: str) -> None:
    model = {"context": 8, "hidden": 32, "layers": 1, "heads": 2, "dropout": 0.0, "sampler": kind, "sampler_width": 32, "sampler_blocks": 1}
    goals = {"mse": 0, "infonce": 0, "denoise": 0, "sampler": 1}
    config = settings(model=model, objectives=goals, steps=40)
    trained = task(config)
    assert {name.split(".")[0] for name, parameter in trained.model.named_parameters() if parameter.requires_grad} == (
        {"embed", "blocks", "norm", "sampler"} | ({"anchor"} if kind == "energy" else set())
    )
    before = trained.evaluate()["loss"]
    result = Trainer(trained, config, tmp_path / "run", quiet=True).train()["evaluation"]
    assert result["loss"] < before
    rows = [row for row in read_metrics(tmp_path / "run") if "sampler" in row]
    assert all(row["gradient_sampler"] > 0 for row in rows[5:])
    model_back = LatentTransformer.from_pretrained(tmp_path / "run")
    assert not model_back.config.point and model_back.config.model.sampler == kind


@pytest.mark.parametrize("name", ["words", "text_lm"])
def test_words_are_those_of_the_next_sentence_and_their_gradient_trains(name: str) -> None:
    plain = spirals()
    source = ArrayDocuments(
        [plain.vectors(doc) for doc in range(len(plain.doc_ids))], texts=[str(row) for row in range(int(plain.starts[-1]))]
    )
    every_DN = torch.from_numpy(np.concatenate([source.vectors(doc) for doc in range(len(source.doc_ids))]).astype(np.float32))

    class MadeUp:
        name = "made up"

        def words(self, z_ND: torch.Tensor, texts: Any) -> torch.Tensor:
            assert torch.allclose(z_ND.norm(dim=-1), torch.ones(len(z_ND)))
            return (z_ND - torch.nn.functional.normalize(every_DN[[int(text) for text in texts]], dim=-1)).square().sum(-1)

        def text_lm(self, z_ND: torch.Tensor, texts: Any, before: Any) -> torch.Tensor:
            for text, earlier in zip(texts, before, strict=True):
                # Rows are numbered through: those before it in its document, as far back as its window of 8 reaches.
                start = int(source.starts[source.starts <= int(text)][-1])
                assert earlier == [str(row) for row in range(int(text) - len(earlier), int(text))]
                assert int(earlier[0]) in range(start, int(text), 7) and len(earlier) in range(1, 8)
            return self.words(z_ND, texts)

    config = settings(objectives={"mse": 0, "infonce": 0, "denoise": 0, name: 1, "words_sentences": 8})
    made = Pretraining(source, config, dim=DIM, decoder=MadeUp())
    assert made.fingerprint()["decoder"] == "made up"
    optimizer = torch.optim.Adam([parameter for parameter in made.model.parameters() if parameter.requires_grad], lr=3e-3)
    losses = []
    for index in range(60):
        batch = made.batch(index)
        assert len(batch.worded_N) == 8
        total, parts = made.loss(batch)
        losses.append(float(parts[name]))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    # A fixed rotation can be learned: only if the texts are those of the next sentences does the loss fall so far.
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:5])


def test_a_run_starts_from_another_of_its_size(tmp_path: Path) -> None:
    config = settings(steps=20, save_every=20)
    sha = [f"{doc:<064d}" for doc in range(100, 160)]
    Trainer(task(config, text_sha256=sha), config, tmp_path / "first", quiet=True).train()
    first = LatentTransformer.from_pretrained(tmp_path / "first")
    raw = to_dict(config)
    raw["objectives"] |= {"sampler": 1.0, "mse": 1.0, "infonce": 0.0}
    raw["model"] |= {"sampler": "energy", "sampler_width": 16, "sampler_blocks": 1}
    raw["data"] |= {"limit_documents": 5}
    other = settings_from(PretrainSettings, raw, origin="test")
    second = task(other, text_sha256=sha, start_from=tmp_path / "first")
    assert torch.equal(second.model.embed.weight, first.embed.weight) and torch.equal(second.model.normaliser.scale, first.normaliser.scale)
    assert second.fingerprint()["start_from"] and second._trained_on is not None
    Trainer(second, other, tmp_path / "second", quiet=True).train()
    assert read_trained_on(tmp_path / "second") == read_trained_on(tmp_path / "first"), "what the first was trained on stays known"
    for shape in ({"hidden": 64, "layers": 1}, {"hidden": 32, "layers": 2}, {"hidden": 32, "layers": 1, "anchor": "last"}):
        with pytest.raises(UserError, match="another shape"):
            task(settings(model={"context": 8, "heads": 2, **shape}), start_from=tmp_path / "first")
    longer = settings(model={"context": 16, "hidden": 32, "layers": 1, "heads": 2, "dropout": 0.0, "rope_scale": 2.0})
    turned = [task(longer, start_from=start).model.positions.state_dict() for start in (None, tmp_path / "first")]
    assert all(torch.equal(value, turned[1][name]) for name, value in turned[0].items()), "positions are the new run's"
    raw["data"] |= {"held_out_fraction": 0.9, "limit_documents": None}
    others = settings_from(PretrainSettings, raw, origin="test")
    judged = np.unique(task(others, text_sha256=sha, start_from=tmp_path / "first").held_out._windows_W3[:, 0])
    assert len(judged) and not {text_key(sha[doc]) for doc in judged} & (read_trained_on(tmp_path / "first") or set())


def test_gradient_norms_are_those_of_each_objective_alone() -> None:
    config = settings(objectives={"mse": 0.5, "infonce": 2.0, "denoise": 0})
    both = task(config)
    batch = both.batch(0)
    total, _ = both.loss(batch)
    total.backward()
    logged = dict(both.losses.gradients)
    for name, weight in (("mse", 0.5), ("infonce", 2.0)):
        alone = task(settings(objectives={"mse": 0, "infonce": 0, "denoise": 0} | {name: weight}))
        alone.loss(alone.batch(0))[0].backward()
        torch.testing.assert_close(logged[f"gradient_{name}"], alone.losses.gradients[f"gradient_{name}"])


def test_a_head_needs_a_weight() -> None:
    with pytest.raises(UserError, match="a head needs a weight"):
        settings(objectives={"sampler": 1.0})


def test_resumed_equals_unbroken_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(steps=30, save_every=10, model={"context": 8, "hidden": 32, "layers": 1, "heads": 2, "dropout": 0.2})
    Trainer(task(config), config, tmp_path / "whole", quiet=True).train()
    broken = task(config)
    whole_batch = broken.batch
    monkeypatch.setattr(broken, "batch", lambda index: whole_batch(index) if index < 17 else (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Trainer(broken, config, tmp_path / "broken", quiet=True).train()
    Trainer(task(config), config, tmp_path / "broken", quiet=True).train()
    for name in ("final/model.safetensors", "final/README.md", "final/done.json", "metrics.jsonl"):
        assert sha256_file(tmp_path / "whole" / name) == sha256_file(tmp_path / "broken" / name)


def test_batches_depend_on_their_index_alone() -> None:
    config = settings(data={"batch_sentences": 64, "held_out_fraction": 0.2, "noise": 0.1})
    one, other = task(config), task(config)
    one.batch(0)
    first, second = one.batch(5), other.batch(5)
    assert torch.equal(first.z_BSD, second.z_BSD) and torch.equal(first.masked_BS, second.masked_BS)
    assert first.noise_BSD is not None and second.noise_BSD is not None and torch.equal(first.noise_BSD, second.noise_BSD)
    assert not np.array_equal(task(config, seed=1).batch(5).packed.document_BS, first.packed.document_BS)


def test_too_few_documents() -> None:
    source = ArrayDocuments([np.ones((1, DIM), dtype=np.float16)] * 3)
    with pytest.raises(UserError, match="no training document of at least two sentences"):
        Pretraining(source, settings(), dim=DIM)


def test_an_untrained_model_ranks_as_its_control() -> None:
    scores = task(settings()).evaluate()
    assert scores["recall_10"] == pytest.approx(scores["control_recall_10"]) and scores["median_rank"] == scores["control_median_rank"]


def test_diagnostics_known_values() -> None:
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(4000, 8, generator=generator)
    assert effective_rank(cloud) == pytest.approx(8, abs=0.1)
    assert effective_rank(torch.outer(torch.randn(50, generator=generator), torch.ones(8))) == pytest.approx(1, abs=0.01)
    assert effective_rank(torch.ones(5, 8)) == 1.0
    assert mean_pairwise_cosine(torch.ones(5, 8)) == pytest.approx(1.0)
    assert mean_pairwise_cosine(torch.eye(4)) == pytest.approx(0.0, abs=1e-9)
    few = cloud[:40]
    cosine = torch.nn.functional.normalize(few, dim=-1) @ torch.nn.functional.normalize(few, dim=-1).T
    assert mean_pairwise_cosine(few) == pytest.approx(float((cosine.sum() - cosine.trace()) / (40 * 39)), abs=1e-6)
    assert l2_to_truth(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(2.5)
    assert l2_to_nearest(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [1.0, 1.0]])) == pytest.approx(math.sqrt(2), rel=1e-5)


def test_spectrum_and_collapse_known_values() -> None:
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(4000, 8, generator=generator)
    torch.testing.assert_close(pca_spectrum(cloud), torch.full((8,), 1 / 8, dtype=torch.float64), atol=0.02, rtol=0)
    flat = cloud * torch.tensor([3.0, 1.0] + [0.0] * 6)
    torch.testing.assert_close(pca_spectrum(flat)[:2], torch.tensor([0.9, 0.1], dtype=torch.float64), atol=0.02, rtol=0)
    assert principal_dims(flat, 0.8) == 1 and principal_dims(flat, 0.99) == 2 and principal_dims(torch.ones(5, 3)) == 0
    wide = torch.randn(2000, 64, generator=generator)
    line = torch.randn(2000, 1, generator=generator) * torch.ones(64)
    assert collapse(wide, wide) is None and collapse(wide[:, :32].repeat(1, 2), wide) is None
    assert "one vector" in str(collapse(torch.ones(2000, 64) + 0.01 * wide, wide)) and "few directions" in str(collapse(line, wide))
    near = torch.ones(2000, 64) + 0.1 * wide  # real sentences of some encoders lie close together: that alone is no collapse
    assert collapse(near, near) is None


def test_a_collapse_is_said_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    made = task(settings())
    made.evaluate()
    assert "COLLAPSE" not in capsys.readouterr().err
    with torch.no_grad():
        made.model.correction.bias.fill_(1e3)
    made.evaluate()
    assert "COLLAPSE: predictions are nearly one vector" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_parse(path: Path) -> None:
    loaded = load_settings(PretrainSettings, path)
    assert settings_from(PretrainSettings, to_dict(loaded), origin="again") == loaded


def test_unknown_keys_and_bad_values_are_named() -> None:
    with pytest.raises(UserError, match=r"model\.layer: "):
        settings_from(PretrainSettings, {"model": {"layer": 3}}, origin="test")
    with pytest.raises(UserError, match=r"batch_sentences 64 is less than one row of model\.context 128"):
        settings_from(PretrainSettings, {"data": {"batch_sentences": 64}}, origin="test")
