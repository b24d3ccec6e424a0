"""Soft tokens as a frozen LM reads them: vectors in place of word embeddings, and what happens to their positions behind its layers.

Shape letters: C contexts, P positions of one, Q those of its soft tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lsm.lm.contexts import Read, read_contexts

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM


@dataclass
class Soft:
    """Contexts of soft tokens, each a row of the lists."""

    tokens: list[Tensor]
    """[P, H]: word embeddings of what goes as text, where something does, and the soft tokens behind them."""
    deep: dict[int, list[Tensor]] = field(default_factory=dict)
    """By layer, for the last Q positions of each context: what is added to the LM's stream behind it, [Q, H]."""
    replaces: bool = False
    """`deep` takes the stream's place instead."""
    cue: Tensor | None = None
    """[vectors, H] behind every context."""

    @property
    def contexts(self) -> list[Tensor]:
        """What stands in place of word embeddings, cue included."""
        return self.tokens if self.cue is None else [torch.cat([row, self.cue]) for row in self.tokens]

    @contextmanager
    def placed(self, lm: FrozenLM) -> Iterator[None]:
        """While open, contexts that are read (padded on the right) get `deep`."""
        with ExitStack() as stack:
            for layer, rows in self.deep.items():

                def put(stream_CPH: Tensor, rows: list[Tensor] = rows) -> Tensor:
                    longest, first = stream_CPH.shape[1], [len(own) - len(row) for own, row in zip(self.tokens, rows, strict=True)]
                    padded = [nn.functional.pad(row, (0, 0, at, longest - at - len(row))) for row, at in zip(rows, first, strict=True)]
                    values_CPH = torch.stack(padded).to(stream_CPH.dtype)
                    if not self.replaces:
                        return stream_CPH + values_CPH
                    place_P = torch.arange(longest, device=stream_CPH.device)
                    inside = [(place_P >= at) & (place_P < at + len(row)) for row, at in zip(rows, first, strict=True)]
                    return torch.where(torch.stack(inside)[:, :, None], values_CPH, stream_CPH)

                stack.enter_context(lm.inject(layer, put))
            yield


def read_soft(lm: FrozenLM, soft: Soft, row_of_N: Sequence[int], preamble: Read) -> Read:
    """`read_contexts` of soft tokens."""
    return read_contexts(lm, soft.contexts, row_of_N, preamble=preamble, around=soft.placed(lm))
