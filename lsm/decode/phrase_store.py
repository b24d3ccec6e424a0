"""The phrase store: a nearest-neighbour index (faiss) over the sentences of a corpus, or over their phrases, with their texts.

On disk FILE is the faiss index, FILE.parquet the texts and document ids, FILE.json (written last) the fingerprints.
Shape letters: B queries, D vector width, K neighbours, N sentences of the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.corpus.format import require_same_space
from lsm.corpus.reader import Corpus
from lsm.decode.vectors import Encode, unit
from lsm.errors import UserError
from lsm.files import atomic_write, read_json, sha256_file, write_json
from lsm.progress import Progress
from lsm.text.phrases import phrases_of

FORMAT = "lsm phrase store"
FLAT_UP_TO = 200_000
"""Sentences up to which every one is compared (exact); larger stores probe the nearest cells of an inverted file."""
_PROBES = 32
_TRAINING_VECTORS_PER_CELL = 64
_ROWS_AT_ONCE = 16384


class PhraseStore:
    """Sentences to search by vector. Rows are numbered 0 … len − 1 in corpus order; identical sentences are held once.

    Args:
        texts: `text` and `doc_id` of each row; of a corpus' sentences also `row`, where it first stands there, and `times`, how often.
        corpus: fingerprint of the corpus it was built over; "" = not known.
    """

    def __init__(self, index: Any, texts: pa.Table, encoder: dict[str, Any], corpus: str = "") -> None:
        self._index, self._texts, self.encoder, self.corpus = index, texts, encoder, corpus

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def dim(self) -> int:
        """Width of the vectors, D."""
        return int(self.encoder["dim"])

    @classmethod
    def from_corpus(cls, corpus: Corpus, *, flat_up_to: int = FLAT_UP_TO, quiet: bool = True) -> PhraseStore:
        """Index every distinct sentence of a corpus, in memory (D × 4 bytes each when flat, D × 2 above)."""
        rows_N, times_N, texts, doc_ids = _distinct(corpus, lambda text: [text])
        index = _index(len(texts), corpus.dim, lambda places: corpus.vector_at(rows_N[places]), "sentences", flat_up_to, quiet)
        table = pa.table({"text": texts, "doc_id": doc_ids, "row": rows_N, "times": times_N})
        return cls(index, table, corpus.encoder, corpus.fingerprint)

    @classmethod
    def phrases_from_corpus(cls, corpus: Corpus, encode: Encode, *, flat_up_to: int = FLAT_UP_TO, quiet: bool = True) -> PhraseStore:
        """Index every distinct phrase (see `lsm.text.phrases`) of a corpus's sentences; they are encoded here, three or four a sentence.

        Args:
            encode: the corpus's own encoder, texts → vectors float32 [N, D].
        """
        _, _, texts, doc_ids = _distinct(corpus, phrases_of)
        index = _index(len(texts), corpus.dim, lambda places: encode([texts[n] for n in places]), "phrases", flat_up_to, quiet)
        return cls(index, pa.table({"text": texts, "doc_id": doc_ids}), corpus.encoder, corpus.fingerprint)

    @classmethod
    def open(cls, path: Path) -> PhraseStore:
        """Read a store that `save` wrote.

        Raises:
            UserError: missing, unfinished or damaged.
        """
        import faiss

        if not path.is_file():
            raise UserError(f"phrase store {path} does not exist; make it with: lsm build-index --corpus DIR --out {path}")
        about_path = _beside(path, ".json")
        if not about_path.exists():
            raise UserError(f"phrase store {path} is unfinished (no {about_path.name}); build it again")
        about = read_json(about_path)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise UserError(f"{about_path} does not describe a phrase store; name a file that lsm build-index wrote")
        for file in (path, _beside(path, ".parquet")):
            if not file.exists() or sha256_file(file) != about["sha256"].get(file.name.removeprefix(path.name) or "index"):
                raise UserError(f"phrase store {file} is missing or damaged; build it again with lsm build-index")
        index = faiss.read_index(str(path))
        return cls(index, pq.read_table(_beside(path, ".parquet"), partitioning=None), about["encoder"], about.get("corpus", ""))

    def save(self, path: Path) -> dict[str, Any]:
        """Write the three files and return what the third one says."""
        import faiss

        path.parent.mkdir(parents=True, exist_ok=True)
        _beside(path, ".json").unlink(missing_ok=True)
        with atomic_write(path) as handle:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(handle.write))
        with atomic_write(_beside(path, ".parquet")) as handle:
            pq.write_table(self._texts, handle, compression="zstd")
        about = {
            "format": FORMAT,
            "encoder": self.encoder,
            "corpus": self.corpus,
            "n_sentences": len(self),
            "index": type(self._index).__name__,
            "sha256": {"index": sha256_file(path), ".parquet": sha256_file(_beside(path, ".parquet"))},
        }
        write_json(_beside(path, ".json"), about)
        return about

    def search(self, z_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest sentences by cosine: scores_BK float32 and rows_BK int64, best first; row −1 where the store has fewer."""
        assert z_BD.ndim == 2 and z_BD.shape[1] == self.dim, f"{z_BD.shape} are not queries [B, {self.dim}]"
        return self._index.search(unit(z_BD), k)

    def neighbours(self, z_1D: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of one vector [1, D] the at most k nearest sentences, best first: rows int64 [K], cosines float32 [K], vectors float32 [K, D]."""
        assert z_1D.shape == (1, self.dim), f"{z_1D.shape} is not one query [1, {self.dim}]"
        scores_1K, rows_1K, found_1KD = self._index.search_and_reconstruct(unit(z_1D), min(k, len(self)))
        there = rows_1K[0] >= 0  # fewer where the cells that were probed hold no more
        return rows_1K[0][there], scores_1K[0][there], found_1KD[0][there]

    def text(self, row: int) -> str:
        """The sentence of a row."""
        return self._texts["text"][int(row)].as_py()

    def texts(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The sentences of many rows."""
        return self._texts["text"].take(pa.array(np.asarray(rows, dtype=np.int64))).to_pylist()

    def document(self, row: int) -> str:
        """doc_id of the first document that holds the sentence of a row."""
        return self._texts["doc_id"][int(row)].as_py()

    def documents(self) -> np.ndarray:
        """Number of each row's document, counted from 0 in the order in which they are first held, int64 [N]."""
        indices = self._texts["doc_id"].combine_chunks().dictionary_encode().indices
        return indices.to_numpy().astype(np.int64)

    def corpus_rows(self, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
        """Where in its corpus each sentence stands first, int64 [N], and how often it stands there, int64 [N].

        Raises:
            UserError: it was built over another corpus, or holds phrases.
        """
        again = f"build it with: lsm build-index --corpus {corpus.path} --out FILE"
        if self.corpus != corpus.fingerprint:
            known = self.corpus or "not recorded by the lsm that wrote it"
            raise UserError(f"phrase store of another corpus (fingerprint {known}; {corpus.path} has {corpus.fingerprint}); {again}")
        if "row" not in self._texts.column_names:
            raise UserError(f"phrase store of phrases, where one of sentences is needed; {again}")
        return self._texts["row"].to_numpy(), self._texts["times"].to_numpy()

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Unit vectors of rows, float32 [N, D]."""
        import faiss

        if isinstance(self._index, faiss.IndexIVF):
            self._index.make_direct_map()
        return unit(self._index.reconstruct_batch(np.ascontiguousarray(rows, dtype=np.int64)))

    def require_encoder(self, wanted: dict[str, Any], *, what: str = "phrase store") -> None:
        """Raise `UserError`, showing both fingerprints, unless the store lives in the vector space of `wanted`."""
        require_same_space(self.encoder, wanted, what=what)


def phrases_beside(path: Path) -> Path:
    """Where the phrases of a store of sentences lie."""
    return _beside(path, ".phrases")


def _index(n: int, dim: int, vectors_at: Callable[[np.ndarray], np.ndarray], what: str, flat_up_to: int, quiet: bool) -> Any:
    """A faiss index over n vectors, which `vectors_at` gives for any of the numbers 0 … n − 1."""
    import faiss

    if n <= flat_up_to:
        index = faiss.IndexFlatIP(dim)
    else:
        cells = int(4 * np.sqrt(n))
        index = faiss.index_factory(dim, f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
        step = max(1, n // (cells * _TRAINING_VECTORS_PER_CELL))
        index.train(unit(vectors_at(np.arange(0, n, step))))
        index.nprobe = _PROBES
    with Progress("phrase store", n, what, quiet=quiet) as progress:
        for start in range(0, n, _ROWS_AT_ONCE):
            places = np.arange(start, min(n, start + _ROWS_AT_ONCE))
            index.add(unit(vectors_at(places)))
            progress.advance(len(places))
    return index


def _distinct(corpus: Corpus, pieces: Callable[[str], Sequence[str]]) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Of every distinct piece of a sentence, where it stands first: corpus row [N], how often it stands there [N], text and document id."""
    seen: dict[bytes, int] = {}
    rows, times, texts, doc_ids = [], [], [], []
    for doc, doc_id in enumerate(corpus.doc_ids):
        start, _ = corpus.rows(doc)
        for place, sentence in enumerate(corpus.texts(doc)):
            for text in pieces(sentence):
                digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
                if digest in seen:
                    times[seen[digest]] += 1
                    continue
                seen[digest] = len(rows)
                times.append(1)
                rows.append(start + place)
                texts.append(text)
                doc_ids.append(doc_id)
    if not rows:
        raise UserError(f"corpus {corpus.path} holds no sentence to index")
    return np.array(rows, dtype=np.int64), np.array(times, dtype=np.int64), texts, doc_ids


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
