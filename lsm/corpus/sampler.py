"""Documents packed into rows of sentences, in an order that is a pure function of (seed, epoch, position).

Shape letters: B rows of a batch, S sentences of a row, D vector width, N documents, W windows.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

PAD = -1
"""Value of every id in the padding at the end of a row."""
_OPEN_ROWS = 64
_CONTENT_SEED = 0x5E47E4CE


class VectorDocuments(Protocol):
    """What the sampler needs of a corpus; `Corpus` has it, and so has `ArrayDocuments`."""

    @property
    def doc_ids(self) -> Sequence[str]:
        """Id of every document."""
        ...

    @property
    def starts(self) -> np.ndarray:
        """First row of every document and, last, the number of rows: int64 [N + 1]."""
        ...

    def vectors(self, doc: int) -> np.ndarray:
        """Sentence vectors of a document, [S, D]."""
        ...

    def vector_at(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Sentence vectors of any rows, [B, D], in the order asked for."""
        ...

    def column(self, name: str) -> np.ndarray:
        """A numeric column over all rows; the sampler asks for `part` and `section`."""
        ...

    def text_at(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The text of any rows; asked for by objectives that word predictions."""
        ...


class ArrayDocuments:
    """Documents held in memory, for tests and experiments: one array [S, D] each."""

    def __init__(
        self,
        vectors: Sequence[np.ndarray],
        *,
        doc_ids: Sequence[str] | None = None,
        parts: np.ndarray | None = None,
        texts: Sequence[str] | None = None,
        sections: np.ndarray | None = None,
    ) -> None:
        self._vectors = list(vectors)
        self.doc_ids = list(doc_ids) if doc_ids is not None else [f"document {n}" for n in range(len(self._vectors))]
        self.starts = np.concatenate([[0], np.cumsum([len(v) for v in self._vectors])]).astype(np.int64)
        self._texts = texts
        zeros = np.zeros(self.starts[-1], dtype=np.int32)
        self._columns = {"part": zeros if parts is None else parts, "section": zeros if sections is None else sections}

    @cached_property
    def _every_ND(self) -> np.ndarray:
        return np.concatenate(self._vectors)

    def vectors(self, doc: int) -> np.ndarray:
        """Sentence vectors of a document, [S, D]."""
        return self._vectors[doc]

    def vector_at(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Sentence vectors of any rows, [B, D]."""
        return self._every_ND[np.asarray(rows, dtype=np.int64)]

    def text_at(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The text of any rows."""
        assert self._texts is not None, "these documents have no text"
        return [self._texts[row] for row in rows]

    def column(self, name: str) -> np.ndarray:
        """The column `part` or `section`, zeros where none was given."""
        return self._columns[name]


def split_documents(doc_ids: Sequence[str], held_out_fraction: float, *, salt: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and of the held-out documents.

    A document is held out when the hash of its id falls below the fraction: the choice does not depend on order, corpus or seed, and stays
    when documents are appended. Where nothing falls below (a small corpus), the document with the smallest hash is held out; where all
    do, the one with the largest is trained on.

    Args:
        salt: stands before each id. What a split leaves has its hashes above the fraction: to split it again, take another salt.
    """
    keys = [(salt + doc_id).encode("utf-8", "surrogatepass") for doc_id in doc_ids]
    hashes = np.array([int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64 for key in keys])
    held_out = hashes < held_out_fraction
    if held_out_fraction > 0 and len(hashes) > 1:
        if not held_out.any():
            held_out[hashes.argmin()] = True
        if held_out.all():
            held_out[hashes.argmax()] = False
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


@dataclass(frozen=True)
class PackedBatch:
    """Rows of packed documents; padding stands at the end of a row only, with vectors of zeros and ids of `PAD`."""

    z_BSD: np.ndarray
    """Sentence vectors, float32."""
    segment_BS: np.ndarray
    """Number of the window within its row, int64: attention stays inside equal numbers."""
    document_BS: np.ndarray
    """Number of the document in the corpus, int64."""
    row_id_BS: np.ndarray
    """Number of the sentence in the corpus, int64: within a document, a smaller one has been read earlier."""
    part_BS: np.ndarray
    """0 for a whole sentence or its first piece, 1, 2 … for later pieces, int64."""
    section_BS: np.ndarray
    """Number of the section within its document, int64; a document without sections is one, 0."""
    content_BS: np.ndarray
    """Hash of the vector, int64: equal for sentences that nothing can tell apart."""

    @property
    def n_sentences(self) -> int:
        """Sentences in the batch, padding not counted."""
        return int((self.segment_BS != PAD).sum())

    def rows(self, which: slice) -> PackedBatch:
        """Some of its rows, as wide as they stand here."""
        return PackedBatch(**{field.name: getattr(self, field.name)[which] for field in dataclasses.fields(self)})

    @property
    def one_segment_a_row(self) -> bool:
        """Whether no row holds two windows (plain causal attention is enough then)."""
        return bool(self.segment_BS.max(initial=0) <= 0)


class PackedSampler:
    """Batches of `rows` rows with `context` sentences each.

    A document longer than `context` is cut into windows that overlap by one sentence, so that each step from a sentence to the next is
    seen once an epoch. Windows are packed once, nearly without padding; an epoch is a permutation of the rows, drawn by a
    counter-based generator (Philox) from (seed, epoch). `batch(index)` is therefore computed from its index alone.
    """

    def __init__(self, source: VectorDocuments, documents: np.ndarray, *, context: int, rows: int, seed: int = 0) -> None:
        assert context >= 2 and rows >= 1
        self.source, self.context, self.rows, self.seed = source, context, rows, seed
        self._windows_W3 = _windows(source.starts, np.asarray(documents, dtype=np.int64), context)
        self._members_W, self._row_starts = _pack(self._windows_W3[:, 2] - self._windows_W3[:, 1], context)
        self._parts, self._sections = source.column("part"), source.column("section")
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def n_rows(self) -> int:
        """Packed rows, all of which one epoch shows."""
        return len(self._row_starts) - 1

    @property
    def n_batches(self) -> int:
        """Batches of an epoch; the rows left over by the last one wait for another permutation."""
        return max(1, self.n_rows // self.rows)

    @property
    def n_sentences(self) -> int:
        """Distinct sentences of all rows (windows of one document share one each)."""
        lengths = np.diff(self.source.starts)[np.unique(self._windows_W3[:, 0])]
        return int(lengths.sum())

    @property
    def filled(self) -> float:
        """Share of the rows' places that hold a sentence."""
        return float((self._windows_W3[:, 2] - self._windows_W3[:, 1]).sum() / max(1, self.n_rows * self.context))

    def batch(self, index: int) -> PackedBatch:
        """Batch number `index` of the endless stream of epochs."""
        epoch, position = divmod(index, self.n_batches)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, permutation(self.n_rows, self.seed, epoch))
        return self.rows_of(self._order[1][position * self.rows : (position + 1) * self.rows])

    def in_order(self, index: int) -> PackedBatch:
        """Batch number `index` without permutation, for evaluation."""
        return self.rows_of(np.arange(index * self.rows, min(self.n_rows, (index + 1) * self.rows)))

    def rows_of(self, numbers: np.ndarray) -> PackedBatch:
        """The batch made of the given packed rows, only as wide as its longest row."""
        windows = [self._members_W[self._row_starts[n] : self._row_starts[n + 1]] for n in numbers]
        lengths = [self._windows_W3[members, 2] - self._windows_W3[members, 1] for members in windows]
        shape = (len(windows), max(int(some.sum()) for some in lengths))
        segment_BS, document_BS, row_id_BS, part_BS, section_BS = (np.full(shape, PAD, dtype=np.int64) for _ in range(5))
        for row, members in enumerate(windows):
            place = 0
            for segment, window in enumerate(members):
                doc, start, stop = (int(value) for value in self._windows_W3[window])
                there = slice(place, place + stop - start)
                segment_BS[row, there], document_BS[row, there] = segment, doc
                row_id_BS[row, there] = np.arange(start, stop) + self.source.starts[doc]
                place = there.stop
        there_BS = segment_BS != PAD
        rows = row_id_BS[there_BS]
        part_BS[there_BS], section_BS[there_BS] = self._parts[rows], self._sections[rows]
        z_ND = self.source.vector_at(rows)
        z_BSD = np.zeros((*shape, z_ND.shape[1]), dtype=np.float32)
        z_BSD[there_BS] = z_ND
        return PackedBatch(z_BSD, segment_BS, document_BS, row_id_BS, part_BS, section_BS, _content(z_BSD))


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0 … n − 1 from (seed, epoch): the order of n raw Philox numbers, whose stream numpy guarantees across versions."""
    generator = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64))
    return np.argsort(generator.random_raw(n), kind="stable")


def _windows(starts: np.ndarray, documents: np.ndarray, context: int) -> np.ndarray:
    """(document, first sentence, stop) of every window, int64 [W, 3]; documents of one sentence have nothing to predict and give none."""
    lengths_N = starts[documents + 1] - starts[documents]
    counts_N = np.maximum(0, -(-(lengths_N - 1) // (context - 1)))
    of_W = np.repeat(np.arange(len(documents)), counts_N)
    within_W = np.arange(len(of_W)) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
    first_W = within_W * (context - 1)
    return np.stack([documents[of_W], first_W, np.minimum(lengths_N[of_W], first_W + context)], axis=1)


def _pack(lengths_W: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Which windows share a row: each goes to the fullest of a few open rows that still takes it, the oldest of equally full ones.

    Rows stand in the order in which they were closed. A window of `context` or `context` - 1 sentences is a row of its own at once, so that
    only the shorter ones, two or fewer a document, are gone through one by one.

    Returns:
        The windows, row by row, int64 [W], and where each row starts among them, int64 [rows + 1].
    """
    closed_W = np.arange(len(lengths_W))  # after which window the row of each was closed
    open_rows: list[deque[tuple[int, list[int]]]] = [deque() for _ in range(context)]  # by places left: (its last window, windows)
    filled = 0  # bit n: there is an open row with n places left
    n_open = 0
    short = np.flatnonzero(lengths_W < context - 1)
    for window, length in zip(short.tolist(), lengths_W[short].tolist(), strict=True):
        if fitting := filled >> length:
            found = length + _lowest(fitting)
            _, members = open_rows[found].popleft()
            filled ^= 0 if open_rows[found] else 1 << found
            n_open -= 1
            members.append(window)
            left = found - length
        else:
            left, members = context - length, [window]
        if left < 2:
            closed_W[members] = window
            continue
        open_rows[left].append((window, members))
        filled |= 1 << left
        n_open += 1
        if n_open > _OPEN_ROWS:
            fullest = _lowest(filled)
            _, members = open_rows[fullest].popleft()
            filled ^= 0 if open_rows[fullest] else 1 << fullest
            n_open -= 1
            closed_W[members] = window
    for last, members in (row for rows in open_rows for row in rows):
        closed_W[members] = len(lengths_W) + last
    members_W = np.argsort(closed_W, kind="stable")
    row_starts = np.flatnonzero(np.diff(closed_W[members_W], prepend=-1, append=2 * len(lengths_W) + 1))
    return members_W, row_starts


def _lowest(bits: int) -> int:
    """Place of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1


def _content(z_BSD: np.ndarray) -> np.ndarray:
    """A 64-bit hash of every vector's float16 bits: a sum with odd multipliers."""
    bits_BSD = z_BSD.astype(np.float16).view(np.uint16).astype(np.uint64)
    multipliers_D = np.random.Philox(key=_CONTENT_SEED).random_raw(z_BSD.shape[-1]) | np.uint64(1)
    return (bits_BSD * multipliers_D).sum(-1, dtype=np.uint64).view(np.int64)


def summary(sampler: PackedSampler) -> dict[str, Any]:
    """Counts for the plan and the model card."""
    return {
        "documents": len(np.unique(sampler._windows_W3[:, 0])),
        "sentences": sampler.n_sentences,
        "rows": sampler.n_rows,
        "filled": round(sampler.filled, 4),
    }
