"""What decoder training reads: a corpus's sentences as token ids, in batches of nearly equal length.

Shape letters: N sentences, B rows, D vector width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import permutation
from lsm.errors import UserError
from lsm.lm.tokens import Tokens, pad_ids

_TEXTS_AT_ONCE = 4096


class TokenizedSentences:
    """Sentences of some documents of a corpus as ids of one LM (end token included), held in memory at four bytes a token."""

    def __init__(
        self, corpus: Corpus, documents: Sequence[int] | np.ndarray, tokens: Tokens, *, max_tokens: int, limit: int | None = None
    ) -> None:
        if not len(documents):
            raise UserError(f"corpus {corpus.path} has one document: it cannot both train and be held out; encode at least two")
        self.corpus, self.end_id = corpus, tokens.end_id
        rows: list[int] = []
        pieces: list[np.ndarray] = []
        texts: list[str] = []
        waiting: list[int] = []
        self.n_left_out = 0

        def take() -> None:
            for row, ids in zip(waiting, tokens.encode(texts), strict=True):
                if len(ids) + 1 > max_tokens:
                    self.n_left_out += 1
                    continue
                rows.append(row)
                pieces.append(np.array([*ids, tokens.end_id], dtype=np.int32))
            texts.clear()
            waiting.clear()

        for doc in documents:
            start, stop = corpus.rows(doc)
            texts += corpus.texts(doc)
            waiting += range(start, stop)
            if len(texts) >= _TEXTS_AT_ONCE:
                take()
                if limit is not None and len(rows) >= limit:
                    break
        take()
        rows, pieces = rows[:limit], pieces[:limit]
        if not rows:
            raise UserError(
                f"corpus {corpus.path}: no sentence of {len(documents)} documents has at most {max_tokens} tokens; raise max_tokens"
            )
        self.rows_N = np.array(rows, dtype=np.int64)
        self.lengths_N = np.array([len(piece) for piece in pieces], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths_N)])
        self._flat = np.concatenate(pieces)

    def __len__(self) -> int:
        return len(self.rows_N)

    def vectors(self, numbers_B: np.ndarray) -> Tensor:
        """Sentence vectors [B, D] float32."""
        return torch.from_numpy(self.corpus.vector_at(self.rows_N[numbers_B]).astype(np.float32))

    def ids(self, numbers_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """ids_BT and mask_BT, padded on the right."""
        return pad_ids([self._flat[self._starts[n] : self._starts[n + 1]].tolist() for n in numbers_B], self.end_id)

    def token_counts(self, vocabulary: int) -> Tensor:
        """How often each token occurs, float32 [V]."""
        return torch.from_numpy(np.bincount(self._flat, minlength=vocabulary).astype(np.float32))


class LengthBatches:
    """Batches of sentences of (nearly) one length under a budget of positions: `numbers(index)` is a pure function of (seed, index).

    Sentences are shuffled, sorted by length and cut; then the cuts are shuffled. Equal lengths need no padding and no mask.
    """

    def __init__(self, lengths_N: np.ndarray, *, extra_positions: int, budget_positions: int, seed: int) -> None:
        self.lengths_N, self.seed = lengths_N, seed
        self._cuts = _cut(np.sort(lengths_N) + extra_positions, budget_positions)
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None

    @property
    def n_batches(self) -> int:
        """Batches of an epoch: the same in every epoch, since lengths are."""
        return len(self._cuts) - 1

    def numbers(self, index: int) -> np.ndarray:
        """Numbers of the sentences of batch `index` of the endless stream of epochs."""
        epoch, position = divmod(index, self.n_batches)
        if self._order is None or self._order[0] != epoch:
            shuffled_N = permutation(len(self.lengths_N), self.seed, 2 * epoch)
            order_N = shuffled_N[np.argsort(self.lengths_N[shuffled_N], kind="stable")]
            self._order = (epoch, order_N, permutation(self.n_batches, self.seed, 2 * epoch + 1))
        _, order_N, places = self._order
        return order_N[self._cuts[places[position]] : self._cuts[places[position] + 1]]


def _cut(widths: np.ndarray, budget: int) -> list[int]:
    """Bounds of batches over ascending widths, each as large as its longest member's width lets it be."""
    cuts = [0]
    while (start := cuts[-1]) < len(widths):
        stop = min(len(widths), start + max(1, budget // int(widths[start])))
        while stop - start > 1 and (stop - start) * int(widths[stop - 1]) > budget:
            stop -= 1
        cuts.append(stop)
    return cuts
