"""Sentences beyond the next: what is learned, saved, shared by processes, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsm.config import settings_from
from lsm.corpus.sampler import PAD, ArrayDocuments
from lsm.errors import UserError
from lsm.files import read_json, write_json
from lsm.latent.ahead import ahead_loss
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import PretrainSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.training.distributed import Ranks
from lsm.training.loop import Trainer
from lsm.training.metrics import read_metrics

DIM = 12
ONLY = {"mse": 0, "infonce": 0, "denoise": 0, "ahead": 1, "ahead_sentences": 2}


def rotations() -> ArrayDocuments:
    """Documents in which each vector is the last one, turned: what stands two or three sentences on can be told."""
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0]
    documents = []
    for n in range(50):
        vectors = [generator.standard_normal(DIM)]
        for _ in range(1 + n % 9):
            vectors.append(rotation @ vectors[-1])
        documents.append((np.array(vectors) / np.linalg.norm(vectors[0])).astype(np.float16))
    return ArrayDocuments(documents)


def settings(**changes: Any) -> PretrainSettings:
    raw: dict[str, Any] = {
        "steps": 60, "eval_every": 60, "save_every": 60, "threads": 1, "precision": "float32", "ema_decay": 0.8,
        "optimizer": {"lr": 3e-3, "warmup_steps": 5},
        "model": {"context": 8, "hidden": 32, "layers": 1, "heads": 2, "dropout": 0.0},
        "data": {"batch_sentences": 64, "held_out_fraction": 0.2}, "objectives": ONLY,
    }  # fmt: skip
    return settings_from(PretrainSettings, raw | changes, origin="test")


def task(config: PretrainSettings, ranks: Ranks | None = None) -> Pretraining:
    return Pretraining(rotations(), config, dim=DIM, encoder={"name": "stub", "dim": DIM}, ranks=ranks or Ranks())


def test_alone_it_falls_and_the_saved_model_looks_ahead(tmp_path: Path) -> None:
    config = settings()
    trained = task(config)
    moved = {name.split(".")[0] for name, parameter in trained.model.named_parameters() if parameter.requires_grad}
    assert moved == {"embed", "blocks", "norm", "anchor", "further"}
    z_BSD = torch.from_numpy(rotations().vectors(8)[None, :8].astype(np.float32))

    def cosines(model: LatentTransformer) -> list[float]:
        ahead_BKSD = model.predict_ahead(z_BSD)
        assert ahead_BKSD.shape == (1, 2, 8, DIM)
        torch.testing.assert_close(ahead_BKSD.norm(dim=-1), torch.ones(1, 2, 8))
        return [float((ahead_BKSD[0, k, : -2 - k] * z_BSD[0, 2 + k :]).sum(-1).mean()) for k in range(2)]

    before, untrained = trained.evaluate()["ahead"], cosines(trained.model)
    result = Trainer(trained, config, tmp_path / "run", quiet=True).train()["evaluation"]
    assert result["ahead"] == pytest.approx(result["loss"]) and result["ahead"] < 0.7 * before
    model = LatentTransformer.from_pretrained(tmp_path / "run")
    assert model.config.ahead == 2 and not model.config.point
    assert all(after > 0.5 > before + 0.1 for after, before in zip(cosines(model), untrained, strict=True))
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(LatentTransformer.from_pretrained(tmp_path / "again").predict_ahead(z_BSD), model.predict_ahead(z_BSD))
    assert all(row["gradient_ahead"] > 0 for row in read_metrics(tmp_path / "run")[5:] if "ahead" in row)


def test_the_loss_is_the_mean_over_the_distances_inside_each_window() -> None:
    made = task(settings())
    with torch.no_grad():
        for head in made.model.further:
            head.weight.normal_(std=0.1)
    batch, model = made.batch(0), made.model
    assert batch.segment_BS is not None, "no row holds two windows"
    anchor_BSD, state_BSH = model.read(batch.z_BSD, batch.segment_BS)
    packed, expected = batch.packed, []
    for distance in (2, 3):
        errors = []
        for row, segments in enumerate(packed.segment_BS):
            for place in range(len(segments) - distance):
                if segments[place] == segments[place + distance] != PAD:
                    assert packed.row_id_BS[row, place] + distance == packed.row_id_BS[row, place + distance]
                    predicted_D = model.point(anchor_BSD[row, place], state_BSH[row, place], distance - 1)
                    errors.append(((predicted_D - batch.z_BSD[row, place + distance]) / model.normaliser.scale).square().mean())
        expected.append(torch.stack(errors).mean())
    torch.testing.assert_close(ahead_loss(model, anchor_BSD, state_BSH, batch.z_BSD, batch.ahead), torch.stack(expected).mean())
    torch.testing.assert_close(made.loss(batch)[1]["ahead"], torch.stack(expected).mean().detach())


def test_processes_share_it() -> None:
    config = settings(objectives={"mse": 1, "infonce": 1, "denoise": 0, "ahead": 1, "ahead_sentences": 6})
    alone = task(config)
    shares = [task(config, Ranks(rank, 4)) for rank in range(4)]
    for index in range(3):
        own = [share.loss(share.batch(index))[1]["ahead"] for share in shares]
        torch.testing.assert_close(torch.stack(own).mean(), alone.loss(alone.batch(index))[1]["ahead"])


def test_a_distance_that_no_window_has_counts_nothing() -> None:
    source = ArrayDocuments([np.random.default_rng(n).standard_normal((3, DIM)).astype(np.float16) for n in range(30)])
    made = Pretraining(source, settings(objectives=ONLY | {"ahead_sentences": 6}), dim=DIM)
    total, parts = made.loss(made.batch(0))
    total.backward()
    near = Pretraining(source, settings(objectives=ONLY | {"ahead_sentences": 1}), dim=DIM)
    torch.testing.assert_close(parts["ahead"] * 6, near.loss(near.batch(0))[1]["ahead"])


def test_without_the_weight_there_is_no_head_and_old_models_load(tmp_path: Path) -> None:
    plain, wide = task(settings(objectives={})), task(settings(objectives={"ahead": 0.1}))
    assert not plain.model.further and len(wide.model.further) == 3
    for name, value in plain.model.state_dict().items():  # what the others start from does not depend on it
        torch.testing.assert_close(wide.model.state_dict()[name], value)
    sentences, passes = plain.sampler.rows * 8, 1.25
    assert wide.flops_per_step() - plain.flops_per_step() == pytest.approx(6 * 3 * 32 * DIM * sentences * passes)
    plain.model.save_pretrained(tmp_path)
    stored = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {name: value for name, value in stored.items() if name != "ahead"})
    model = LatentTransformer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--objectives\.ahead 1"):
        model.predict_ahead(torch.zeros(1, 2, DIM))


def test_untrained_heads_give_the_anchor() -> None:
    config = settings()
    model = LatentTransformer(LatentConfig(dim=DIM, model=config.model, ahead=2)).eval()
    z_BSD = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
    for ahead_BSD in model.predict_ahead(z_BSD).unbind(1):
        torch.testing.assert_close(ahead_BSD, model.predict(z_BSD))


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        ({"ahead": -1}, r"objectives\.ahead -1\.0 must not be negative"),
        ({"ahead": 1, "ahead_sentences": 0}, r"ahead_sentences 0 must be at least 1"),
        ({"ahead": 1, "ahead_sentences": 7}, r"ahead_sentences 7: model\.context 8 holds at most 6"),
        ({"text_lm": 1, "words_context": 0}, r"words_context 0 must be at least 1"),
        ({"mse": 0, "infonce": 0, "denoise": 0}, r"words, text_lm, lexical and ahead are all 0"),
    ],
)
def test_what_cannot_be_is_refused(objectives: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(objectives=objectives)


def test_a_space_without_semantic_vectors_cannot_be_worded() -> None:
    with pytest.raises(UserError, match=r"objectives\.text_lm reads semantic vectors"):
        settings(objectives={"text_lm": 1}, data={"batch_sentences": 64, "space": "residual"})
