"""The distinct sentences of a corpus, or their distinct phrases, read shard by shard so that none but the present shard's are held.

Shape letters: P pieces (sentences or phrases) of a shard, R pieces of the corpus, N distinct ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lsm.corpus.reader import Corpus
from lsm.decode.index_kinds import ROWS_AT_ONCE
from lsm.errors import UserError
from lsm.progress import Progress
from lsm.text.phrases import phrases_of

_DIGEST_BYTES = 16


class Pieces:
    """Every distinct piece of a corpus, in the order in which they first stand there.

    Making one reads all texts once and keeps 16 bytes of hash for each; 40 bytes a piece at the peak.

    Raises:
        UserError: there is none.
    """

    def __init__(self, corpus: Corpus, *, phrases: bool = False, quiet: bool = True) -> None:
        self.corpus, self.phrases = corpus, phrases
        with Progress("distinct " + self.what, corpus.n_sentences, "sentences", quiet=quiet) as progress:
            digests = []
            for start, stop, _, texts in self._shards():
                joined = b"".join(
                    hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest() for text in texts
                )
                digests.append(np.frombuffer(joined, dtype="<u8").reshape(-1, 2))
                progress.advance(stop - start)
        digest_R2 = np.concatenate(digests) if digests else np.zeros((0, 2), dtype="<u8")
        if not len(digest_R2):
            raise UserError(f"corpus {corpus.path} holds no {self.what.removesuffix('s')} to index")
        order_R = np.lexsort((digest_R2[:, 1], digest_R2[:, 0]))  # stable: of equal ones the first stands first
        sorted_R2 = digest_R2[order_R]
        begins_R = np.concatenate([[True], (sorted_R2[1:] != sorted_R2[:-1]).any(axis=1)])
        starts_N = np.flatnonzero(begins_R)
        self._is_first_R = np.zeros(len(digest_R2), dtype=bool)
        self._is_first_R[order_R[starts_N]] = True
        in_order = np.argsort(order_R[starts_N], kind="stable")
        self._times_N = np.diff(np.append(starts_N, len(digest_R2)))[in_order]

    def __len__(self) -> int:
        return len(self._times_N)

    @property
    def what(self) -> str:
        """What they are called: sentences or phrases."""
        return "phrases" if self.phrases else "sentences"

    def tables(self, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
        """`text` and `doc_id` of the distinct pieces, some thousand at a time; of sentences also `row`, where each first stands in the
        corpus, and `times`, how often.
        """
        number = distinct = 0
        for _, _, row_P, texts in self._shards():
            first_P = np.flatnonzero(self._is_first_R[number : number + len(texts)])
            number += len(texts)
            for start in range(0, len(first_P), rows_at_once):
                some = first_P[start : start + rows_at_once]
                doc_ids = self.corpus.documents["doc_id"].take(pa.array(self.corpus.document_of(row_P[some]))).to_pylist()
                columns: dict[str, object] = {"text": [texts[place] for place in some], "doc_id": doc_ids}
                if not self.phrases:
                    columns |= {"row": row_P[some], "times": self._times_N[distinct : distinct + len(some)]}
                distinct += len(some)
                yield pa.table(columns)

    def _shards(self) -> Iterator[tuple[int, int, np.ndarray, list[str]]]:
        """First row and end of each shard, and of its pieces the corpus row [P] and the text."""
        for shard in range(self.corpus.n_shards):
            start, stop = self.corpus.shard_rows(shard)
            row_P = np.arange(start, stop)
            texts = self.corpus.text_at(row_P)
            if self.phrases:
                pieces = [phrases_of(text) for text in texts]
                row_P = np.repeat(row_P, [len(some) for some in pieces])
                texts = [piece for some in pieces for piece in some]
            yield start, stop, row_P, texts
            self.corpus.release()
