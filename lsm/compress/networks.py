"""Small networks that a compressor is put together from: a reader of bytes, cross-attention queries, a residual MLP, a codebook.

Shape letters: C texts, T states of a text, P windows, F width of a state, D width of a code, N codes of all texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

BYTE_WIDTH = 128
_QUERY_HEADS = 4
_PLACES = 1024


class ByteReader(nn.Module):
    """UTF-8 bytes → states [T, F]: embeddings, sinusoids of place and two transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, BYTE_WIDTH)
        layer = nn.TransformerEncoderLayer(BYTE_WIDTH, 4, 2 * BYTE_WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, texts: Sequence[str]) -> tuple[list[Tensor], list[list[int]]]:
        device = self.embedding.weight.device
        rows = [list(text.encode("utf-8", errors="replace")) or [0] for text in texts]
        places = [[i for i, letter in enumerate(text) for _ in letter.encode("utf-8", errors="replace")] or [0] for text in texts]
        padded = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
        inside = torch.arange(padded.shape[1], device=device) < torch.tensor([[len(row)] for row in rows], device=device)
        states_CTF = self.layers(self.embedding(padded) + _sinusoids(padded.shape[1], BYTE_WIDTH, device), src_key_padding_mask=~inside)
        return [states_CTF[row, : len(ids)] for row, ids in enumerate(rows)], places


class Queries(nn.Module):
    """Cross-attention: as many queries as soft tokens, told apart by where in the text they stand (Flamingo's resampler, one layer)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.query, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, _QUERY_HEADS, batch_first=True)
        self.out = nn.Linear(width, dim)

    def at(self, n_windows: int) -> Tensor:
        """The queries [P, F] for so many soft tokens."""
        return self.query(_sinusoids(_PLACES, self.query.in_features, self.query.weight.device)[_centres(n_windows)])

    def forward(self, state_TF: Tensor, n_windows: int) -> Tensor:
        place_TF = _sinusoids(_PLACES, state_TF.shape[1], state_TF.device)[_centres(len(state_TF))]
        query_PF = self.at(n_windows)
        keys_TF = self.norm(state_TF) + place_TF
        return self.out(self.attend(query_PF[None], keys_TF[None], keys_TF[None], need_weights=False)[0][0])


class Residual(nn.Module):
    """x + size(x) · MLP(norm(x)), zero at first; a code of several states side by side has its size and norm state by state."""

    def __init__(self, width: int, hidden: int, n_states: int = 1) -> None:
        super().__init__()
        self.n_states = n_states
        self.norm, self.up, self.down = nn.LayerNorm(width // n_states), nn.Linear(width, hidden), zeroed(nn.Linear(hidden, width))

    def forward(self, x_PD: Tensor) -> Tensor:
        states_PSF = x_PD.unflatten(1, (self.n_states, -1))
        size_PS1 = states_PSF.detach().pow(2).mean(2, keepdim=True).sqrt()
        added_PD = self.down(nn.functional.gelu(self.up(self.norm(states_PSF).flatten(1))))
        return x_PD + (size_PS1 * added_PD.unflatten(1, (self.n_states, -1))).flatten(1)


def scorer(width: int, hidden: int) -> nn.Sequential:
    """State [F] → score [1], linear or through a hidden layer; every score is 0 at first."""
    layers: list[nn.Module] = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
    return nn.Sequential(*layers, zeroed(nn.Linear(hidden or width, 1)))


def _centres(n: int) -> Tensor:
    """Places of n things spread evenly over a text, on a scale of `_PLACES`."""
    return ((torch.arange(n) + 0.5) * _PLACES / n).long()


def zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]


def quantised(codes: Sequence[Tensor], codebook: nn.Embedding) -> tuple[list[Tensor], Tensor]:
    """Nearest entries, gradients straight through, and codebook plus commitment loss (weights 1 and 0.25)."""
    flat_ND = torch.cat(list(codes))
    nearest_ND = codebook(torch.cdist(flat_ND.detach(), codebook.weight.detach()).argmin(1))
    loss = (nearest_ND - flat_ND.detach()).pow(2).mean() + 0.25 * (nearest_ND.detach() - flat_ND).pow(2).mean()
    through_ND = flat_ND + (nearest_ND - flat_ND).detach()
    return list(through_ND.split([len(code) for code in codes])), loss
