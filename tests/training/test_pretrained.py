"""Trained networks as folders: found in a run or its `final`, refused in one line when absent, of another kind or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lsm.errors import UserError
from lsm.training.pretrained import Kind, weights_sha256

TOY = Kind("lsm toy", "toy", "lsm train-toy")
STATE = {"weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "scale": torch.tensor(2.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "final").mkdir()
    TOY.save(tmp_path / "final", STATE, {"width": 4}, card="# Toy", dtype=torch.float32)
    return tmp_path / "final"


def test_a_run_and_its_final_folder_are_the_same(folder: Path) -> None:
    assert TOY.find(folder.parent) == TOY.find(folder) == (folder, {"format": "lsm toy", "width": 4})
    with TOY.reading(folder) as state:
        assert state.keys() == STATE.keys()
        assert all(torch.equal(value, STATE[name]) for name, value in state.items())
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Toy"


@pytest.mark.parametrize("in_int8", [False, True])
def test_narrow_weights_come_back_as_float32(tmp_path: Path, in_int8: bool) -> None:
    TOY.save(tmp_path, STATE, {}, card="", in_int8=lambda name, value: in_int8 and value.ndim == 2)
    with TOY.reading(tmp_path) as state:
        assert {value.dtype for value in state.values()} == {torch.float32}
        half_a_step = STATE["weight"].abs().amax(-1, keepdim=True) * (1.001 / 254 if in_int8 else 2**-11)
        assert ((state["weight"] - STATE["weight"]).abs() <= half_a_step).all()


def test_what_is_not_there_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is no folder; name one that lsm train-toy has finished"):
        TOY.find(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no finished toy"):
        TOY.find(tmp_path / "empty")
    with pytest.raises(UserError, match="describes lsm toy, not lsm game; name what lsm train-game wrote"):
        Kind("lsm game", "game", "lsm train-game").find(folder.parent)
    (folder / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="describes something else, not lsm toy"):
        TOY.find(folder)


@pytest.mark.parametrize("cut", [0, 9, -3])
def test_damaged_weights_are_named(folder: Path, cut: int) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    before = weights_sha256(folder)
    (folder / "model.safetensors").write_bytes(whole[:cut])
    assert weights_sha256(folder) != before
    with pytest.raises(UserError, match=f"toy {folder} is damaged"), TOY.reading(folder):
        pass


def test_what_does_not_fit_is_damage_and_an_own_error_stays(folder: Path) -> None:
    with pytest.raises(UserError, match=rf"toy {folder} is damaged.*Missing key"), TOY.reading(folder) as state:
        torch.nn.Linear(4, 3).load_state_dict({"weight": state["weight"]})
    with pytest.raises(UserError, match=r"^of its own$"), TOY.reading(folder):
        raise UserError("of its own")
    with pytest.raises(UserError, match=rf"toy {folder} is damaged.*KeyError: 'absent'"), TOY.reading(folder) as state:
        state["absent"]
