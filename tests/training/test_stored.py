"""Stored weights: float32 as they are, int8 within half a step of each row, whatever the names."""

from __future__ import annotations

import torch

from lsm.training.stored import pack, unpack


def test_rows_come_back_within_half_a_step() -> None:
    torch.manual_seed(0)
    state = {
        "a": torch.randn(5, 7) * torch.logspace(-3, 3, 5)[:, None],
        "a.scale": torch.rand(5),
        "b": torch.randn(3),
        "zero": torch.zeros(2, 2),
    }
    stored = pack({n: v for n, v in state.items() if n != "a.scale"}, torch.float16, in_int8=lambda name, value: value.ndim == 2)
    assert stored["a"].dtype == torch.int8 and stored["b"].dtype == torch.float16
    back = unpack(stored)
    assert set(back) == {"a", "b", "zero"} and back["a"].dtype == torch.float32
    step_51 = state["a"].abs().amax(1, keepdim=True) / 127
    assert ((back["a"] - state["a"]).abs() <= 0.5001 * step_51).all() and torch.equal(back["zero"], state["zero"])
    state |= {"b.scale": torch.rand(5)}
    same = unpack(pack(state, torch.float32, in_int8=lambda name, value: True))
    assert set(same) == set(state) and all(torch.equal(same[name], value) for name, value in state.items())
