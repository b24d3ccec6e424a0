"""The phrase store: a nearest-neighbour index over the sentences of a corpus, or over their phrases, with their texts.

On disk FILE is the faiss index, FILE.parquet the texts and document ids, FILE.vectors.npy (approximate indexes only) the vectors that
candidates are ranked by, FILE.json (written last) the fingerprints. `lsm.decode.phrase_build` writes large ones without holding them.
Shape letters: B queries, D vector width, K neighbours, N sentences of the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.corpus.format import require_same_space
from lsm.corpus.reader import Corpus
from lsm.decode.index_kinds import Effort, VectorsAt, Wanted, build_index, choose, efforts
from lsm.decode.nearest import Nearest
from lsm.decode.pieces import Pieces
from lsm.decode.vectors import Encode, unit
from lsm.errors import UserError
from lsm.files import atomic_write, read_json, sha256_file, write_json

FORMAT = "lsm phrase store"
FORMAT_VERSION = 2
"""1, or none: a faiss index alone, exact or in cells. 2: an approximate index may stand beside the vectors that rank its candidates."""
INDEX, TEXTS, VECTORS, ABOUT = "index", ".parquet", ".vectors.npy", ".json"
HASHED_AT_OPEN_BYTES = 2**30
"""Vectors are hashed when a store is opened up to this size; of larger files the size is compared, unless `verify` is asked for."""
_USUAL_EFFORT = 3
"""Which of the efforts a store in memory is searched with: none is measured for it."""


class PhraseStore:
    """Sentences to search by vector. Rows are numbered 0 … len − 1 in corpus order; identical sentences are held once.

    Args:
        index: `Nearest`, or a faiss index whose word is final.
        texts: `text` and `doc_id` of each row; of a corpus' sentences also `row`, where it first stands there, and `times`, how often.
        corpus: fingerprint of the corpus it was built over; "" = not known.
    """

    def __init__(self, index: Any, texts: pa.Table, encoder: dict[str, Any], corpus: str = "") -> None:
        self.nearest = index if isinstance(index, Nearest) else Nearest(index)
        self._texts, self.encoder, self.corpus = texts, encoder, corpus

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def dim(self) -> int:
        """Width of the vectors, D."""
        return int(self.encoder["dim"])

    @classmethod
    def from_corpus(cls, corpus: Corpus, *, index: Wanted = "auto", quiet: bool = True) -> PhraseStore:
        """Index every distinct sentence of a corpus in memory: D × 4 bytes each when flat, D / 4 + 8 above, where the corpus' own vectors
        rank the candidates (ivf-pq: for one use a graph is not worth building).
        """
        pieces = Pieces(corpus)
        kind = choose(len(pieces), index).kind
        if index == "auto" and kind == "hnsw":
            kind = "ivf-pq"
        texts = pa.concat_tables(list(pieces.tables()))
        row_N = texts["row"].to_numpy()
        nearest = _nearest(kind, len(pieces), corpus.dim, lambda places: corpus.vector_at(row_N[places]), "sentences", quiet)
        return cls(nearest, texts, corpus.encoder, corpus.fingerprint)

    @classmethod
    def phrases_from_corpus(cls, corpus: Corpus, encode: Encode, *, index: Wanted = "auto", quiet: bool = True) -> PhraseStore:
        """Index every distinct phrase (see `lsm.text.phrases`) of a corpus's sentences in memory; they are encoded here, three or four a
        sentence.

        Args:
            encode: the corpus's own encoder, texts → vectors float32 [N, D].
        """
        pieces = Pieces(corpus, phrases=True)
        texts = pa.concat_tables(list(pieces.tables()))
        kind = choose(len(pieces), index).kind
        words = texts["text"]
        if kind == "flat":
            nearest = _nearest(
                kind, len(pieces), corpus.dim, lambda places: encode(words.take(pa.array(places)).to_pylist()), "phrases", quiet
            )
        else:
            z_ND = np.concatenate([np.float16(encode(table["text"].to_pylist())) for table in pieces.tables()])
            nearest = _nearest(kind, len(pieces), corpus.dim, lambda places: z_ND[places], "phrases", quiet)
        return cls(nearest, texts, corpus.encoder, corpus.fingerprint)

    @classmethod
    def open(cls, path: Path, *, verify: bool = False) -> PhraseStore:
        """Read a store that `lsm build-index` wrote; the vectors of an approximate one stay on disk, memory-mapped.

        Args:
            verify: hash the vectors however large they are.

        Raises:
            UserError: missing, unfinished, damaged, or written by a newer lsm.
        """
        import faiss

        about = read_about(path)
        again = "build it again with: lsm build-index --corpus DIR --out " + str(path)
        for part, sha256 in about["sha256"].items():
            file = part_path(path, part)
            if not file.is_file():
                raise UserError(f"phrase store {path}: {file.name} is missing; {again}")
            size = file.stat().st_size
            if (wanted := about.get("bytes", {}).get(part, size)) != size:
                raise UserError(f"phrase store {path}: {file.name} is damaged ({size:,} bytes instead of {wanted:,}); {again}")
            is_read = part != VECTORS or verify or size <= HASHED_AT_OPEN_BYTES
            if is_read and sha256_file(file) != sha256:
                raise UserError(f"phrase store {path}: {file.name} is damaged (its hash differs); {again}")
        try:
            index = faiss.read_index(str(path))
            texts = pq.read_table(part_path(path, TEXTS), partitioning=None)
        except (RuntimeError, OSError, pa.ArrowException) as error:
            raise UserError(f"phrase store {path} cannot be read ({' '.join(str(error).split())[:200]}); {again}") from error
        n, dim = about["n_sentences"], about["encoder"].get("dim")
        if index.ntotal != n or len(texts) != n or index.d != dim:
            found = f"{index.ntotal:,} vectors of {index.d} dims, {len(texts):,} texts"
            raise UserError(f"phrase store {path}: its parts do not belong together ({found}; {n:,} of {dim} are described); {again}")
        if VECTORS not in about["sha256"]:
            return cls(index, texts, about["encoder"], about.get("corpus", ""))
        z_ND = mapped(part_path(path, VECTORS))
        if z_ND.shape != (n, dim):
            raise UserError(f"phrase store {path}: its vectors have shape {list(z_ND.shape)} instead of {[n, dim]}; {again}")
        nearest = Nearest(index, lambda rows: z_ND[rows], Effort(**about["effort"]))
        return cls(nearest, texts, about["encoder"], about.get("corpus", ""))

    def save(self, path: Path) -> dict[str, Any]:
        """Write the files and return what the last one says."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part_path(path, ABOUT).unlink(missing_ok=True)
        with atomic_write(path) as handle:
            write_index(self.nearest, handle)
        with atomic_write(part_path(path, TEXTS)) as handle:
            pq.write_table(self._texts, handle, compression="zstd")
        if self.nearest.vectors_at is None:
            part_path(path, VECTORS).unlink(missing_ok=True)
        else:
            with atomic_write(part_path(path, VECTORS)) as handle:
                np.save(handle, np.asarray(self.nearest.vectors_at(np.arange(len(self))), dtype="<f2"), allow_pickle=False)
        about = self.describe(path)
        write_json(part_path(path, ABOUT), about)
        return about

    def describe(self, path: Path) -> dict[str, Any]:
        """What FILE.json says of the other files at `path`."""
        parts = [INDEX, TEXTS] if self.nearest.vectors_at is None else [INDEX, TEXTS, VECTORS]
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "encoder": self.encoder,
            "corpus": self.corpus,
            "n_sentences": len(self),
            "index": type(self.nearest.index).__name__,
            **({"effort": vars(self.nearest.effort)} if self.nearest.effort else {}),
            "sha256": {part: sha256_file(part_path(path, part)) for part in parts},
            "bytes": {part: part_path(path, part).stat().st_size for part in parts},
        }

    def search(self, z_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest sentences by cosine: scores_BK float32 and rows_BK int64, best first; row −1 where the store has fewer."""
        assert z_BD.ndim == 2 and z_BD.shape[1] == self.dim, f"{z_BD.shape} are not queries [B, {self.dim}]"
        return self.nearest.search(unit(z_BD), k)

    def neighbours(self, z_1D: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of one vector [1, D] the at most k nearest sentences, best first: rows int64 [K], cosines float32 [K], vectors float32 [K, D]."""
        assert z_1D.shape == (1, self.dim), f"{z_1D.shape} is not one query [1, {self.dim}]"
        scores_1K, rows_1K, found_1KD = self.nearest.search_and_vectors(unit(z_1D), min(k, len(self)))
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
        return self.nearest.vectors(rows)

    def require_encoder(self, wanted: dict[str, Any], *, what: str = "phrase store") -> None:
        """Raise `UserError`, showing both fingerprints, unless the store lives in the vector space of `wanted`."""
        require_same_space(self.encoder, wanted, what=what)


def read_about(path: Path) -> dict[str, Any]:
    """What FILE.json says of the store at FILE.

    Raises:
        UserError: there is none, it is unfinished, something else, or of a newer lsm.
    """
    if not path.is_file():
        raise UserError(f"phrase store {path} does not exist; make it with: lsm build-index --corpus DIR --out {path}")
    about_path = part_path(path, ABOUT)
    if not about_path.exists():
        raise UserError(
            f"phrase store {path} is unfinished (no {about_path.name}); build it again with: lsm build-index --corpus DIR --out {path}"
        )
    about = read_json(about_path)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{about_path} does not describe a phrase store; name a file that lsm build-index wrote")
    if about.get("format_version", 1) not in (1, FORMAT_VERSION):
        version = about["format_version"]
        raise UserError(f"phrase store {path} has format version {version}, this lsm reads {FORMAT_VERSION}; update lsm or build it again")
    sound = isinstance(about.get("encoder"), dict) and isinstance(about.get("n_sentences"), int)
    sha256, effort = about.get("sha256"), about.get("effort")
    sound &= isinstance(sha256, dict) and {INDEX, TEXTS} <= set(sha256) <= {INDEX, TEXTS, VECTORS}
    if sound and VECTORS in sha256:
        sound = (
            isinstance(effort, dict) and set(effort) == {"breadth", "per_neighbour"} and all(isinstance(n, int) for n in effort.values())
        )
    if not sound:
        raise UserError(
            f"{about_path} is damaged (something is missing in it); build it again with: lsm build-index --corpus DIR --out {path}"
        )
    return about


def part_path(path: Path, part: str) -> Path:
    """Where a part of the store at `path` lies."""
    return path if part == INDEX else path.with_name(path.name + part)


def phrases_beside(path: Path) -> Path:
    """Where the phrases of a store of sentences lie."""
    return path.with_name(path.name + ".phrases")


def mapped(path: Path) -> np.ndarray:
    """The vectors of a file, memory-mapped, float16 [N, D]; `UserError` where they are damaged."""
    try:
        z_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]}); build the store again with lsm build-index") from error
    return z_ND.view(np.ndarray)


def write_index(nearest: Nearest, handle: Any) -> None:
    """Write the faiss index to an open file."""
    import faiss

    faiss.write_index(nearest.index, faiss.PyCallbackIOWriter(handle.write))


def _nearest(kind: Any, n: int, dim: int, vectors_at: VectorsAt, what: str, quiet: bool) -> Nearest:
    index = build_index(kind, n, dim, vectors_at, what=what, quiet=quiet)
    if kind == "flat":
        return Nearest(index)
    nearest = Nearest(index, vectors_at, efforts(kind)[0])
    nearest.set_effort(efforts(kind)[_USUAL_EFFORT])
    return nearest
