"""The trained part: it starts as the encoder's own vector, padding is not seen, every middle learns, and a folder gives it back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lsm.decode.adapter import AdapterHome
from lsm.decode.settings import AdapterSettings
from lsm.errors import UserError
from lsm.reason.model import ReasonModel
from lsm.reason.settings import MiddleSettings, StackSettings

KINDS = ("mlp", "transformer", "gru", "identity")


def model(kind: str = "mlp", *, pooling: str = "attention", width: int = 24, latent: int = 24, compress: int = 32) -> ReasonModel:
    settings = StackSettings(
        pooling=pooling,  # ty: ignore[invalid-argument-type]
        compress_hidden=compress,
        latent_dim=latent,
        middle=MiddleSettings(kind=kind, hidden=32, layers=2, slots=4, steps=3),  # ty: ignore[invalid-argument-type]
        expansion=AdapterSettings(prefix_length=3, hidden=32, lexical=False, soft_words=False),
    )
    home = AdapterHome(encoder={"dim": width, "name": "e"}, lm={"name": "l"}, dim=latent, lm_width=16, vocabulary=50, embedding_rms=0.1)
    torch.manual_seed(0)
    return ReasonModel(settings, home, max_input_tokens=8, notes={"lead": {"unit": "turns", "k": 2}})


def states(width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    mask_BS = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1)) * mask_BS[..., None], mask_BS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_it_starts_as_the_mean_of_the_states(kind: str, pooling: str) -> None:
    states_BSE, mask_BS = states()
    stack = model(kind, pooling=pooling)
    ideas_BD = stack.ideas(states_BSE, mask_BS)
    mean_BE = torch.stack([states_BSE[0].mean(0), states_BSE[1, :3].mean(0)])
    torch.testing.assert_close(ideas_BD, torch.nn.functional.normalize(mean_BE, dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stack.think(ideas_BD), ideas_BD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "attention", "cls"])
def test_padding_is_not_read(pooling: str) -> None:
    states_BSE, mask_BS = states()
    stack = model(pooling=pooling)
    torch.nn.init.normal_(stack.compress.mlp[-1].weight)
    if stack.pooling is not None:
        torch.nn.init.normal_(stack.pooling.score.weight)
    own = stack.ideas(states_BSE, mask_BS)[1:]
    torch.testing.assert_close(stack.ideas(states_BSE[1:, :3], mask_BS[1:, :3]), own, rtol=1e-4, atol=1e-5)


def test_cls_pooling_reads_the_first_state_alone() -> None:
    states_BSE, mask_BS = states()
    stack = model(pooling="cls")
    before = stack.ideas(states_BSE, mask_BS)
    states_BSE[:, 1:] += 1
    torch.testing.assert_close(stack.ideas(states_BSE, mask_BS), before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_middle_but_the_identity_learns_a_map(kind: str) -> None:
    """A rotation of ideas: the identity cannot make it, the others come nearer with every step."""
    stack = model(kind)
    ideas_BD = torch.nn.functional.normalize(torch.randn(16, 24, generator=torch.Generator().manual_seed(2)), dim=-1)
    target_BD = ideas_BD.roll(5, 1)

    def distance() -> torch.Tensor:
        return 1 - (stack.think(ideas_BD) * target_BD).sum(-1).mean()

    before = distance().item()
    if kind == "identity":
        assert not list(stack.middle.parameters())
        return
    optimizer = torch.optim.Adam(stack.middle.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = distance()
        loss.backward()
        optimizer.step()
    assert distance().item() < 0.6 * before


def test_without_compression_the_idea_is_the_pooled_vector() -> None:
    states_BSE, mask_BS = states()
    stack = model(pooling="mean", compress=0)
    assert not list(stack.compress.parameters())
    mean_BE = torch.stack([states_BSE[0].mean(0), states_BSE[1, :3].mean(0)])
    torch.testing.assert_close(stack.ideas(states_BSE, mask_BS), torch.nn.functional.normalize(mean_BE, dim=-1))
    ideas_BD = model(width=40, latent=24, compress=0).ideas(*states(40))
    torch.testing.assert_close(ideas_BD.norm(dim=-1), torch.ones(2))


def test_another_width_keeps_lengths_and_differences() -> None:
    states_BSE, mask_BS = states(40)
    ideas_BD = model(width=40, latent=24).ideas(states_BSE, mask_BS)
    torch.testing.assert_close(ideas_BD.norm(dim=-1), torch.ones(2))
    assert (ideas_BD[0] @ ideas_BD[1]).abs() < 0.9


def test_a_folder_gives_it_back(tmp_path: Path) -> None:
    stack, (states_BSE, mask_BS) = model("gru"), states()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        parameter.data = parameter.data.half().float()  # what is stored
    stack.save_pretrained(tmp_path, card="# card")
    again = ReasonModel.from_pretrained(tmp_path)
    thoughts = [one.think(one.ideas(states_BSE, mask_BS)) for one in (stack, again)]
    torch.testing.assert_close(*thoughts, rtol=0, atol=0)
    assert again.notes == stack.notes and again.settings == stack.settings
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        ReasonModel.from_pretrained(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no finished stack"):
        ReasonModel.from_pretrained(tmp_path / "empty")


def test_slots_must_divide_the_idea() -> None:
    with pytest.raises(UserError, match="does not divide"):
        StackSettings(latent_dim=24, middle=MiddleSettings(kind="transformer", slots=7))
