"""Promises of positions: known values, equality with the library, documents of a row that never meet, longer windows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rotary_embedding_torch import RotaryEmbedding

from lsm.config import load_settings
from lsm.corpus.sampler import PAD, ArrayDocuments, PackedSampler
from lsm.errors import UserError
from lsm.latent.positions import Positions, alibi_slopes, rotate, within_sections
from lsm.latent.pretrain import Pretraining
from lsm.latent.rollout import rollout
from lsm.latent.settings import ModelSettings, PretrainSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.training.loop import Trainer

DIM, KINDS = 12, ("rope", "rope-2d", "alibi")


def model(positions: str, **changes: Any) -> LatentTransformer:
    torch.manual_seed(0)
    basis: dict[str, Any] = {"context": 10, "hidden": 48, "layers": 2, "heads": 3, "dropout": 0.0, "positions": positions}
    made = LatentTransformer(LatentConfig(dim=DIM, model=ModelSettings(**(basis | changes)))).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def vectors(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(1)), dim=-1)


def test_rope_is_bit_for_bit_the_librarys() -> None:
    angles = RotaryEmbedding(16, theta=10000.0, cache_if_possible=False)(torch.arange(9, dtype=torch.float32))[:, ::2]
    rotation = Positions(ModelSettings(hidden=48, heads=3)).rotation(9, None, torch.ones(1, 9, dtype=torch.int64))
    assert rotation is not None and torch.equal(rotation, torch.polar(torch.ones_like(angles), angles))


def test_scaled_rope_known_values() -> None:
    plain, linear, ntk = (
        Positions(ModelSettings(hidden=16, heads=1, **options)).rotation(9, None, None)
        for options in ({}, {"rope_scale": 4.0, "rope_scaling": "linear"}, {"rope_scale": 4.0, "rope_scaling": "ntk"})
    )
    assert plain is not None and linear is not None and ntk is not None
    torch.testing.assert_close(linear[8], plain[2])  # position 8 stands where 2 stood
    torch.testing.assert_close(ntk[:, 0], plain[:, 0])  # the fastest channel turns as before
    torch.testing.assert_close(ntk[8, -1], plain[2, -1])  # the slowest is divided by the scale


def test_rope_2d_turns_half_by_the_section_and_half_within() -> None:
    sections = torch.tensor([[0, 0, 1, 1, 1, 4]])
    positions = Positions(ModelSettings(hidden=16, heads=1, positions="rope-2d"))
    rotation = positions.rotation(6, None, sections)
    one_axis = Positions(ModelSettings(hidden=8, heads=1)).rotation(9, None, None)
    assert rotation is not None and one_axis is not None
    torch.testing.assert_close(rotation[0], torch.cat([one_axis[[0, 0, 1, 1, 1, 4]], one_axis[[0, 1, 0, 1, 2, 0]]], dim=-1))
    # Relative: sections counted from elsewhere give the same products of queries and keys.
    later = positions.rotation(6, None, sections + 70)
    assert later is not None
    query, key = torch.randn(2, 1, 6, 16)
    scores = [rotate(query, turn)[0] @ rotate(key, turn)[0].T for turn in (rotation, later)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def test_places_within_sections() -> None:
    sections, segments = torch.tensor([[3, 3, 4, 4, 4, 4, 0]]), torch.tensor([[0, 0, 0, 0, 1, 1, -1]])
    assert within_sections(sections, None).tolist() == [[0, 1, 0, 1, 2, 3, 0]]
    assert within_sections(sections, segments).tolist() == [[0, 1, 0, 1, 0, 1, 0]]


def test_alibi_slopes_known_values() -> None:
    assert alibi_slopes(8) == [2.0**-k for k in range(1, 9)]
    assert alibi_slopes(1) == [2**-8]
    eight = [2.0**-k for k in range(1, 9)]
    assert alibi_slopes(12) == pytest.approx([*eight, *(2 ** -(k + 0.5) for k in range(4))])
    for heads in range(1, 33):
        slopes = alibi_slopes(heads)
        assert len(set(slopes)) == heads and all(0 < slope < 1 for slope in slopes)


@pytest.mark.parametrize("positions", KINDS)
def test_documents_of_a_row_never_leak(positions: str) -> None:
    made = model(positions)
    segments, sections = torch.tensor([[0] * 4 + [1] * 5 + [PAD]]), torch.tensor([[0, 0, 1, 1, 0, 0, 0, 1, 1, PAD]])
    z_BSD = vectors(1, 10).requires_grad_()
    hidden_BS = torch.zeros(1, 10, dtype=torch.bool)
    hidden_BS[0, 6] = True
    own, other = slice(4, 9), [*range(4), 9]
    for out in (made(z_BSD, segments, section_BS=sections), made.restore(z_BSD, hidden_BS, segments, section_BS=sections)):
        (gradient,) = torch.autograd.grad(out[0, own].square().sum(), z_BSD)
        assert (gradient[0, other] == 0).all() and gradient[0, own].abs().sum() > 0
    packed = made(z_BSD, segments, section_BS=sections)[0, own]
    torch.testing.assert_close(packed, made(z_BSD[:, own], section_BS=sections[:, own])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", KINDS)
def test_order_and_sections_are_seen_where_they_should_be(positions: str) -> None:
    made = model(positions, anchor="last")  # an anchor that knows no distance of its own
    z_BSD = vectors(1, 8)
    swapped = z_BSD[:, [1, 0, *range(2, 8)]]
    assert not torch.allclose(made(z_BSD)[0, -1], made(swapped)[0, -1], atol=1e-4)
    sectioned = made(z_BSD, section_BS=torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]]))
    assert torch.allclose(made(z_BSD), sectioned, atol=1e-5) is (positions != "rope-2d")
    torch.testing.assert_close(made(z_BSD), made(z_BSD, section_BS=torch.full((1, 8), 5)), rtol=1e-4, atol=1e-5)  # one section


@pytest.mark.parametrize("positions", KINDS)
def test_a_widened_model_looks_back_further_and_leaves_its_source_alone(positions: str) -> None:
    made = model(positions)
    z_BSD, sections = vectors(1, 30), torch.arange(30)[None] // 7
    before = made.predict(z_BSD, section_BS=sections)
    wide = made.widened(30)
    assert (wide.context, made.context) == (30, 10) and wide.blocks is made.blocks
    whole = F.normalize(wide(z_BSD, section_BS=sections), dim=-1)
    torch.testing.assert_close(wide.predict(z_BSD, section_BS=sections), whole)
    torch.testing.assert_close(before[:, :10], whole[:, :10])
    assert not torch.allclose(before[:, 20], whole[:, 20], atol=1e-4)
    if positions == "alibi":
        with pytest.raises(UserError, match="alibi"):
            made.widened(30, "linear")
        return
    scaled = made.widened(30, "linear")
    assert not torch.allclose(scaled.predict(z_BSD), wide.predict(z_BSD), atol=1e-5)
    with pytest.raises(UserError, match="trained with linear"):
        scaled.widened(60, "ntk")
    with pytest.raises(UserError, match="longer than"):
        made.widened(10, "ntk")
    assert scaled.config.model.rope_scale == 3 and scaled.widened(60, "linear").config.model.rope_scale == 6
    assert torch.equal(before, made.predict(z_BSD, section_BS=sections))


def test_a_roll_out_stays_in_the_last_section() -> None:
    made = model("rope-2d")
    z_SD, sections = vectors(6), torch.tensor([0, 0, 1, 1, 2, 2])
    planned = rollout(made, z_SD, 5, section_S=sections)
    read, sections = torch.cat([z_SD, planned]), torch.cat([sections, torch.full((5,), 2)])
    for step in range(5):
        window = slice(max(0, step - 4), 6 + step)
        torch.testing.assert_close(planned[step], made.predict(read[None, window], section_BS=sections[None, window])[0, -1])


def test_batches_carry_sections() -> None:
    sections = np.array([0, 0, 1, 2, 2, 0, 1, 1])
    source = ArrayDocuments([np.random.default_rng(0).standard_normal((n, 4)).astype(np.float16) for n in (5, 3)], sections=sections)
    batch = PackedSampler(source, np.arange(2), context=9, rows=1).in_order(0)
    there = batch.segment_BS != PAD
    assert (batch.section_BS[there] == sections[batch.row_id_BS[there]]).all() and (batch.section_BS[~there] == PAD).all()
    plain = ArrayDocuments([np.ones((3, 4), np.float16)])
    assert (PackedSampler(plain, np.arange(1), context=3, rows=1).in_order(0).section_BS == 0).all()


def test_settings_are_checked() -> None:
    for options, said in (
        ({"positions": "rope-2d", "hidden": 24, "heads": 6}, "rope-2d: model.hidden 24"),
        ({"hidden": 12, "heads": 6}, "rope: model.hidden 12"),
        ({"rope_scale": 0.5}, "rope_scale 0.5"),
    ):
        with pytest.raises(UserError, match=said):
            ModelSettings(**options)
    assert math.isclose(ModelSettings(hidden=12, heads=6, positions="alibi").rope_scale, 1)


def chapters(n_documents: int = 40) -> ArrayDocuments:
    """Documents whose next vector is a fixed rotation of the last, in sections of three."""
    generator = np.random.default_rng(0)
    rotation = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0]
    documents = []
    for n in range(n_documents):
        vectors_SD = [generator.standard_normal(DIM)]
        for _ in range(6 + n % 9):
            vectors_SD.append(rotation @ vectors_SD[-1])
        documents.append((np.array(vectors_SD) / np.linalg.norm(vectors_SD[0])).astype(np.float16))
    return ArrayDocuments(documents, sections=np.concatenate([np.arange(len(z_SD)) // 3 for z_SD in documents]))


@pytest.mark.parametrize("positions", KINDS)
def test_each_kind_trains_and_comes_back_from_disk(positions: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "steps: 30\nthreads: 1\nprecision: float32\nema_decay: null\neval_every: 30\nsave_every: 30\n"
        "optimizer: {lr: 3.0e-3, warmup_steps: 5}\ndata: {batch_sentences: 64, held_out_fraction: 0.2}\n"
        "model: {context: 8, hidden: 32, layers: 1, heads: 2, dropout: 0.0, rope_scale: 2.0, rope_scaling: linear, "
        f"positions: {positions}}}\n"
    )
    settings = load_settings(PretrainSettings, tmp_path / "config.yaml")
    task = Pretraining(chapters(), settings, dim=DIM)
    before = task.evaluate()["loss"]
    assert Trainer(task, settings, tmp_path / "run", quiet=True).train()["evaluation"]["loss"] < before - 0.1
    again = LatentTransformer.from_pretrained(tmp_path / "run")
    assert again.config.model == settings.model
    z_BSD, sections = vectors(1, 20), torch.arange(20)[None] // 3
    assert torch.equal(again.predict(z_BSD, section_BS=sections), task.model.predict(z_BSD, section_BS=sections))
