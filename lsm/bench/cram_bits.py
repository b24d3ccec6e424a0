"""Memory vectors in few bits, as somebody would store them, and the bytes that takes.

Letters: P vectors, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lsm.codes.groups import from_levels, level_bytes, to_levels

HEADER_BYTES = 2
"""How many tokens the vectors hold."""


def quantised(vectors_PH: Tensor, bits: int, group: int) -> Tensor:
    """What a reader of the stored vectors gets, float32 (`lsm.codes.groups`)."""
    entries_N = vectors_PH.detach().float().flatten().cpu().numpy()
    return torch.from_numpy(from_levels(*to_levels(entries_N, bits, group), group)).view_as(vectors_PH).to(vectors_PH.device)


def stored_bytes(n_entries: int, bits: int, group: int) -> int:
    """Bytes of entries, scales and header; 16 and 32 bits are floats without scales."""
    return HEADER_BYTES + (n_entries * bits // 8 if bits >= 16 else level_bytes(n_entries, bits, group))
