"""A key-value cache that grows in place and drops rows by moving few.

Shape letters: B rows, G key-value heads, T tokens, C channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_SPARE_TOKENS = 32


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [B, G, T, C]: views of larger buffers, so that a new token is written, not the whole copied for it."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._buffers = [states.new_empty(0) for states in (key_states, value_states)]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens' states and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, added = self.get_seq_length(), key_states.shape[-2]
        if self._buffers[0].ndim < 4 or before + added > self._buffers[0].shape[-2]:
            pairs = zip((self.keys, self.values), (key_states, value_states), strict=True)
            self._buffers = [self._larger(kept, states, before) for kept, states in pairs]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, before : before + added] = states
        self.keys, self.values = (buffer[:, :, : before + added] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` [B'], in that order; rows that stay in their place are not touched."""
        if self.get_seq_length() == 0:
            return
        length, rows = self.get_seq_length(), len(indices)
        if rows > len(self._buffers[0]):
            self._buffers = [buffer[indices] for buffer in self._buffers]
        else:
            moved = (indices != torch.arange(rows, device=indices.device)).nonzero().squeeze(1)
            for buffer in self._buffers:
                if len(moved):
                    buffer[moved, :, :length] = buffer[indices[moved], :, :length]
            self._buffers = [buffer[:rows] for buffer in self._buffers]
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        self.batch_select_indices(torch.arange(len(self.keys), device=self.keys.device).repeat_interleave(repeats))

    @staticmethod
    def _larger(kept: Tensor, states: Tensor, before: int) -> Tensor:
        B, G, added, C = states.shape
        buffer = states.new_empty(B, G, before + added + max(_SPARE_TOKENS, before // 2), C)
        if before:
            buffer[:, :, :before] = kept
        return buffer


def growing_cache() -> Cache:
    """An empty cache for a model whose layers all attend to everything before them."""
    return Cache(layer_class_to_replicate=GrowingLayer)
