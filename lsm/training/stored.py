"""Weights as they are stored to be shipped: large matrices as int8 with a scale for each row, the rest in a narrower float type."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_SCALE = ".scale"


def pack(state: Mapping[str, Tensor], dtype: torch.dtype, *, in_int8: Callable[[str, Tensor], bool]) -> dict[str, Tensor]:
    """Named weights in `dtype`, those of which `in_int8` holds true as int8 steps of a 127th of each row's largest entry; float32 keeps
    every weight as it is."""
    packed = {}
    for name, value in state.items():
        assert value.is_floating_point(), f"{name}: whole numbers would be rounded"
        if dtype != torch.float32 and in_int8(name, value):
            scale = (value.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-8)
            packed[name] = (value / scale).round().to(torch.int8)
            packed[name + _SCALE] = scale.float()
        else:
            packed[name] = value.to(dtype).contiguous()
    return packed


def unpack(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `pack` kept, float32."""
    scales = {name + _SCALE: stored[name + _SCALE] for name, value in stored.items() if value.dtype == torch.int8}
    return {name: value.float() * scales.get(name + _SCALE, 1.0) for name, value in stored.items() if name not in scales}
