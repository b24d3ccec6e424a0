"""A reader of its own for text without any model's tokens: UTF-8 bytes through a small transformer.

Shape letters: C texts, T bytes of a text, F width of a state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lsm.connector.blocks import sinusoids

BYTE_WIDTH = 128


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
        states_CTF = self.layers(self.embedding(padded) + sinusoids(padded.shape[1], BYTE_WIDTH, device), src_key_padding_mask=~inside)
        return [states_CTF[row, : len(ids)] for row, ids in enumerate(rows)], places
