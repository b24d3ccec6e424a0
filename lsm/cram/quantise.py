"""Vectors in few bits: groups of entries with a 16-bit scale each, symmetric around zero.

Letters: P vectors, H hidden width, N entries, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEADER_BYTES = 2
"""How many tokens the vectors hold."""


def quantised(vectors_PH: Tensor, bits: int, group: int) -> Tensor:
    """What a reader of the stored vectors gets, float32: entry = level · scale, with levels from −L to L = 2^(bits−1) − 1 and the scale
    (the group's largest magnitude over L) rounded to float16."""
    largest = 2 ** (bits - 1) - 1
    entries_GN = _groups(vectors_PH, group)
    scale_G1 = (entries_GN.abs().amax(1, keepdim=True) / largest).half().float()
    level_GN = (entries_GN / scale_G1.clamp(min=torch.finfo(torch.float16).tiny)).round().clamp(-largest, largest)
    return (level_GN * scale_G1).flatten()[: vectors_PH.numel()].view_as(vectors_PH)


def stored_bytes(n_entries: int, bits: int, group: int) -> int:
    """Bytes of entries, scales and header; 16 and 32 bits are floats without scales."""
    n_scales = 0 if bits >= 16 else -(-n_entries // group)
    return -(-n_entries * bits // 8) + 2 * n_scales + HEADER_BYTES


def _groups(vectors_PH: Tensor, group: int) -> Tensor:
    flat_N = vectors_PH.detach().float().flatten()
    return torch.nn.functional.pad(flat_N, (0, -len(flat_N) % group)).view(-1, group)
