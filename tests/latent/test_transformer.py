"""Promises of the latent transformer: it starts as its anchor, sees no future and no other document, and comes back from disk unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rotary_embedding_torch import RotaryEmbedding, apply_rotary_emb

from lsm.errors import UserError
from lsm.latent.anchor import BEST_DECAY, exponential_mean
from lsm.latent.normaliser import Normaliser
from lsm.latent.positions import rotate
from lsm.latent.rollout import rollout
from lsm.latent.settings import ModelSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer

DIM = 12


def model(*, trained: bool = True, **changes: Any) -> LatentTransformer:
    """A small model, with every parameter moved away from its start unless `trained` is false."""
    torch.manual_seed(0)
    basis: dict[str, Any] = {"context": 10, "hidden": 32, "layers": 2, "heads": 2, "dropout": 0.1}
    config = LatentConfig(dim=DIM, model=ModelSettings(**(basis | changes)), encoder={"name": "stub", "dim": DIM})
    made = LatentTransformer(config, Normaliser(torch.randn(DIM) * 0.1, torch.rand(DIM) + 0.5)).eval()
    if trained:
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def vectors(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(1)), dim=-1)


def test_untrained_model_is_its_anchor() -> None:
    z_BSD = vectors(2, 8)
    causal_BSS = torch.ones(2, 8, 8).tril().bool()
    expected = exponential_mean(z_BSD, causal_BSS, BEST_DECAY)
    torch.testing.assert_close(model(trained=False)(z_BSD), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(trained=False, anchor="last")(z_BSD), z_BSD)
    direct = sum(BEST_DECAY ** (3 - t) * z_BSD[:, t] for t in range(4)) / sum(BEST_DECAY ** (3 - t) for t in range(4))
    torch.testing.assert_close(expected[:, 3], direct)
    assert model(trained=False, anchor="none")(z_BSD).norm(dim=-1).min() > 0


@pytest.mark.parametrize("anchor", ["attention", "last", "none"])
def test_no_future_is_seen(anchor: str) -> None:
    made = model(anchor=anchor)
    z_BSD = vectors(1, 8)
    changed = z_BSD.clone()
    changed[:, 5:] = vectors(1, 3) * -1
    torch.testing.assert_close(made(z_BSD)[:, :5], made(changed)[:, :5])
    assert not torch.allclose(made(z_BSD)[:, 5:], made(changed)[:, 5:])


def test_packed_rows_equal_single_documents() -> None:
    made = model()
    first, second = vectors(1, 6), vectors(1, 4).flip(1)
    packed = made(torch.cat([first, second], 1), torch.tensor([[0] * 6 + [1] * 4]))
    torch.testing.assert_close(packed[:, :6], made(first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, 6:], made(second), rtol=1e-4, atol=1e-5)


def test_causal_fast_path_equals_mask_and_padding_is_inert() -> None:
    made = model()
    z_BSD = vectors(2, 8)
    padded = z_BSD.clone()
    padded[1, 5:] = 0
    segments = torch.tensor([[0] * 8, [0] * 5 + [-1] * 3])
    fast, masked = made(padded), made(padded, segments)
    torch.testing.assert_close(fast[0], masked[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast[1, :5], masked[1, :5], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(masked).all()


def test_restoration_looks_both_ways_but_not_at_what_is_hidden() -> None:
    made = model()
    z_BSD, masked_BS = vectors(1, 8), torch.zeros(1, 8, dtype=torch.bool)
    masked_BS[0, 3] = True
    segments = torch.tensor([[0] * 6 + [1] * 2])
    before = made.restore(z_BSD, masked_BS, segments)
    for place, sees in ((3, False), (5, True), (0, True), (7, False)):
        changed = z_BSD.clone()
        changed[0, place] *= -1
        assert torch.allclose(before[0, 3], made.restore(changed, masked_BS, segments)[0, 3], atol=1e-6) is not sees


def test_rotation_equals_the_library() -> None:
    rotary = RotaryEmbedding(16, cache_if_possible=False)
    angles = rotary(torch.arange(7).float())
    x = torch.randn(2, 3, 7, 16)
    rotation = torch.polar(torch.ones(7, 8), angles[:, ::2])
    torch.testing.assert_close(rotate(x.transpose(1, 2), rotation).transpose(1, 2), apply_rotary_emb(angles, x))


def test_save_and_load(tmp_path: Path) -> None:
    made = model()
    made.save_pretrained(tmp_path / "a")
    made.save_pretrained(tmp_path / "b")
    again = LatentTransformer.from_pretrained(tmp_path / "a")
    z_BSD = vectors(2, 9)
    assert torch.equal(made.predict(z_BSD), again.predict(z_BSD))
    assert again.config == made.config and again.context == 10 and again.config.encoder["name"] == "stub"
    for file in ("model.safetensors", "config.json", "normaliser.safetensors", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no latent transformer"):
        LatentTransformer.from_pretrained(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="not finished"):
        LatentTransformer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "prefix-adapter"}')
    with pytest.raises(UserError, match="does not describe a latent transformer"):
        LatentTransformer.from_pretrained(tmp_path)
    model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or do not fit"):
        LatentTransformer.from_pretrained(tmp_path)


def test_predict_on_long_documents() -> None:
    made = model()
    z_BSD = vectors(1, 37)
    predicted = made.predict(z_BSD)
    torch.testing.assert_close(predicted.norm(dim=-1), torch.ones(1, 37))
    torch.testing.assert_close(predicted[:, :10], made.predict(z_BSD[:, :10]))
    torch.testing.assert_close(predicted[:, 14], made.predict(z_BSD[:, 5:15])[:, -1])  # the end of the window [5, 15)
    changed = z_BSD.clone()
    changed[:, 20:] = -changed[:, 20:]
    torch.testing.assert_close(predicted[:, :20], made.predict(changed)[:, :20])


def test_rollout_feeds_back_what_on_step_returns() -> None:
    made = model()
    z_SD = vectors(6)
    planned = rollout(made, z_SD, 8)
    read = z_SD
    for z_D in planned:  # plain equivalent: predict, append, keep the last `context`
        torch.testing.assert_close(z_D, made.predict(read[None, -10:])[0, -1])
        read = torch.cat([read, z_D[None]])
    replacement = vectors(1)[0]
    seen: list[int] = []

    def replace(step: int, z_D: torch.Tensor, read_SD: torch.Tensor) -> torch.Tensor | None:
        seen.append(step)
        return replacement if step == 0 else None

    other = rollout(made, z_SD, 3, on_step=replace)
    assert seen == [0, 1, 2] and torch.equal(other[0], replacement)
    torch.testing.assert_close(other[1], made.predict(torch.cat([z_SD, replacement[None]])[None])[0, -1])
    assert rollout(made, z_SD, 0).shape == (0, DIM)
    assert torch.equal(rollout(made, z_SD, 8, until=lambda z_D: torch.equal(z_D, planned[2])), planned[:3])


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match=r"context 1 .*hidden 33 .*dropout 1"):
        ModelSettings(context=1, hidden=33, dropout=1.0)
