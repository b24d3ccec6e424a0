"""The LM as judge of a hypothesis's wording: how probable it is, and which words it expects at each place.

Shape letters: N texts, P pieces of a text, T tokens, H hidden width, V vocabulary, W words of a word list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from lsm.lm.tokens import pad_ids

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

_PIECE = re.compile(r"\s*(?:\w+(?:[-'’.]\w+)*|[^\w\s])")
_POSITIONS_AT_ONCE = 2048
ORDINARY = 3.0
"""Nats a token that prose costs a small LM: a longer text is no worse a text."""


class Reading(NamedTuple):
    """What the LM makes of one text."""

    pieces: list[str]
    """Words and marks, each with the white space before it; they add up to the text."""
    log_probability: float
    """Of the whole text, the end not counted, in nats."""
    n_tokens: int
    piece_P: np.ndarray
    """Log-probability of each piece, given what stands before it: float32 [P]."""
    expected_PW: np.ndarray
    """Log-probability of each word of the list before each piece and, last, after the text: float16 [P + 1, W]."""

    @property
    def surprise(self) -> float:
        """Nats by which the text is less probable than prose of its length."""
        return max(0.0, -self.log_probability - ORDINARY * self.n_tokens)


def pieces_of(text: str) -> list[str]:
    """Words and marks of a text; they add up to it but for white space at its end."""
    return [match.group() for match in _PIECE.finditer(text)]


@torch.inference_mode()
def read(lm: FrozenLM, texts: Sequence[str], word_ids_W: np.ndarray) -> list[Reading]:
    """Read texts with the LM, those of about one length together.

    Args:
        word_ids_W: tokens whose probability is wanted everywhere.
    """
    pieces = [pieces_of(text) for text in texts]
    tokens = [lm.tokens.encode(some) for some in pieces]
    rows = [[lm.tokens.end_id, *(i for ids in some for i in ids)] for some in tokens]
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    readings: dict[int, Reading] = {}
    columns_W = torch.from_numpy(word_ids_W).to(lm.device)
    while order:
        width = len(rows[order[-1]])
        batch = [order.pop() for _ in range(min(len(order), max(1, _POSITIONS_AT_ONCE // width)))]
        ids_NT, _ = pad_ids([rows[n] for n in batch], lm.tokens.end_id)
        hidden_NTH = lm.final_hidden(lm.embed(ids_NT.to(lm.device)))
        for place, n in enumerate(batch):
            length = len(rows[n])
            log_TV = torch.log_softmax(torch.nn.functional.linear(hidden_NTH[place, :length], lm.head_VH).float(), dim=-1)
            said_T = log_TV[:-1].gather(1, ids_NT[place, 1:length, None].to(lm.device))[:, 0].cpu().numpy()
            ends_P = np.cumsum([0, *(len(ids) for ids in tokens[n])])
            piece_P = np.add.reduceat(np.append(said_T, 0.0), ends_P[:-1]) if len(ends_P) > 1 else np.zeros(0)
            expected_PW = log_TV[torch.from_numpy(ends_P).to(lm.device)][:, columns_W].half().cpu().numpy()
            readings[n] = Reading(pieces[n], float(said_T.sum()), len(said_T), piece_P, expected_PW)
    return [readings[n] for n in range(len(texts))]
