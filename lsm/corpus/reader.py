"""Reading a corpus: vectors memory-mapped, texts loaded shard by shard when asked for.

Shape letters: S sentences of a document, D vector width, B rows asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.corpus import format as layout
from lsm.errors import UserError
from lsm.files import fingerprint, read_json

_TABLES_KEPT = 16
"""Sentence tables held in memory at a time: a few MB each."""


_NEEDED = ("encoder", "residual", "parts", "segmentation", "n_documents", "n_sentences", "n_characters", "n_tokens", "n_truncated")
"""Keys that every manifest has (`text` came later)."""


class Corpus:
    """A finished corpus on disk. Documents are numbered 0 … n_documents − 1, rows (sentences) 0 … n_sentences − 1 throughout.

    Opening reads the manifest only. Rows of one document are neighbours, in reading order.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self._vectors: dict[tuple[int, str], np.ndarray] = {}
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        counts = [shard["n_sentences"] for shard in manifest["shards"]]
        self._shard_starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a corpus folder.

        Raises:
            UserError: not a folder, not a corpus, unfinished, or written by a newer lsm; the message says which.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"corpus {path} does not exist; make it with: lsm encode-corpus INPUT --out {path}")
        if not (path / layout.MANIFEST).exists():
            if (path / layout.PLAN).exists() or (path / layout.DERIVED).exists():
                raise UserError(
                    f"corpus {path} is unfinished (no {layout.MANIFEST}); run its {layout.maker(path)} command again to finish it"
                )
            raise UserError(f"{path} is not a corpus (no {layout.MANIFEST}); make one with: lsm encode-corpus INPUT --out DIR")
        try:
            manifest = read_json(path / layout.MANIFEST)
        except UserError as error:
            raise UserError(layout.broken_manifest(path, "it is not JSON")) from error
        if not isinstance(manifest, dict) or manifest.get("format") != layout.FORMAT:
            raise UserError(f"{path / layout.MANIFEST} is not the manifest of a corpus; name the folder that encode-corpus wrote")
        if manifest.get("format_version") != layout.FORMAT_VERSION:
            raise UserError(
                f"corpus {path} has format version {manifest.get('format_version')}, this lsm reads {layout.FORMAT_VERSION}; update lsm"
            )
        try:
            corpus = cls(path, manifest)
            missing = [name for name in _NEEDED if name not in manifest]
            assert corpus.dim
        except (LookupError, TypeError, ValueError, AssertionError) as error:
            raise UserError(layout.broken_manifest(path, f"{type(error).__name__}: {error}")) from error
        if missing:
            raise UserError(layout.broken_manifest(path, f"it has no {', '.join(missing)}"))
        return corpus

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, {self.n_documents:,} documents, {self.n_sentences:,} sentences, {self.dim} dims)"

    @property
    def n_documents(self) -> int:
        """Number of documents."""
        return int(self.manifest["n_documents"])

    @property
    def n_sentences(self) -> int:
        """Number of sentences = rows."""
        return int(self.manifest["n_sentences"])

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return len(self.manifest["shards"])

    @property
    def encoder(self) -> dict[str, Any]:
        """Fingerprint of the frozen encoder."""
        return self.manifest["encoder"]

    @property
    def dim(self) -> int:
        """Width D of the semantic vectors."""
        return int(self.encoder["dim"])

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that stand for every byte of this corpus (what a run resumes against)."""
        return fingerprint(self.manifest)

    @property
    def residual(self) -> dict[str, Any] | None:
        """What fixes the residual code, None for a corpus without one."""
        return self.manifest["residual"]

    @property
    def keeps_text(self) -> bool:
        """Whether sentences stand there as text too, and not as residual codes alone."""
        return self.manifest.get("text", "kept") == "kept"

    def parts(self) -> list[dict[str, Any]]:
        """What a vector is made of: [{name, dim, dtype, scale}]."""
        return self.manifest["parts"]

    def require_encoder(self, wanted: dict[str, Any]) -> None:
        """Raise `UserError`, showing both fingerprints, unless this corpus lives in the vector space of `wanted`."""
        layout.require_same_space(self.encoder, wanted, what=f"corpus {self.path}")

    @cached_property
    def documents(self) -> pa.Table:
        """The table of documents (`format.DOCUMENT_SCHEMA`), one row a document."""
        table = self._parquet(self.path / layout.DOCUMENTS)
        if len(table) < self.n_documents:
            raise UserError(f"{self.path / layout.DOCUMENTS} lists {len(table)} documents, the manifest {self.n_documents}; encode again")
        # An append that died between this table and the manifest has left further rows: they do not exist yet.
        return table.slice(0, self.n_documents)

    @cached_property
    def doc_ids(self) -> list[str]:
        """Every document's id, in order."""
        return self.documents["doc_id"].to_pylist()

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of every document and, last, n_sentences: int64 [n_documents + 1]."""
        lengths = self.documents["n_sentences"].to_numpy().astype(np.int64)
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def rows(self, doc: int) -> tuple[int, int]:
        """Rows [start, stop) of a document."""
        assert 0 <= doc < self.n_documents, f"document {doc} of {self.n_documents}"
        return int(self.starts[doc]), int(self.starts[doc + 1])

    def document_of(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Number of the document that each row belongs to, int64 [B]."""
        return np.searchsorted(self.starts, np.asarray(rows, dtype=np.int64), side="right") - 1

    def vectors(self, doc: int, part: str = "semantic") -> np.ndarray:
        """Sentence vectors of a document, float16 [S, D].

        Args:
            part: semantic, a view into the memory-mapped shard; or residual, a copy of its learned codes in their own unit
                (superposition codes are no vectors: `residual_arrays`).
        """
        shard, first, stop = self._place(doc)
        return self._as_float16(self._shard_vectors(shard, part)[first:stop], part)

    def vector_at(self, rows: Sequence[int] | np.ndarray, part: str = "semantic") -> np.ndarray:
        """Sentence vectors of any rows, float16 [B, D], in the order asked for."""
        rows = np.asarray(rows, dtype=np.int64)
        out_BD = np.empty((len(rows), int(self._part(part)["dim"])), dtype=np.float16)
        for shard, where, local in self._by_shard(rows):
            out_BD[where] = self._as_float16(self._shard_vectors(shard, part)[local], part)
        return out_BD

    def residual_arrays(self, doc: int) -> dict[str, np.ndarray]:
        """The superposition codes of a document, as `lsm.codes.storage.from_arrays` takes them."""
        assert self.residual is not None and self.residual["kind"] == "superposition"
        shard, first, stop = self._place(doc)
        table = self._table(shard)
        names = [name for name in layout.RESIDUAL_SCHEMAS["superposition"].names if name != "code_steps"]
        arrays = {name: table[name].to_numpy()[first:stop] for name in names}
        more_S = table["code_count"].to_numpy().astype(np.int64) - 1
        begin = int(more_S[:first].sum())
        arrays["residual"] = self._shard_array(shard, layout.RESIDUAL, len(table))[first:stop]
        arrays["residual-more"] = self._shard_array(shard, layout.RESIDUAL_MORE, int(more_S.sum()))[
            begin : begin + int(more_S[first:stop].sum())
        ]
        arrays["code_steps"] = table["code_steps"].slice(first, stop - first).combine_chunks().flatten().to_numpy()
        return arrays

    def sentences(self, doc: int) -> pa.Table:
        """The table of a document's sentences (`format.SENTENCE_SCHEMA`)."""
        shard, first, stop = self._place(doc)
        return self._table(shard).slice(first, stop - first)

    def texts(self, doc: int) -> list[str]:
        """A document's sentences as text, [S]; `UserError` where the corpus keeps residual codes only."""
        self._require_text()
        return self.sentences(doc)["text"].to_pylist()

    def text_at(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The text of any rows, [B], in the order asked for; `UserError` where the corpus keeps residual codes only."""
        self._require_text()
        rows = np.asarray(rows, dtype=np.int64)
        out: list[str] = [""] * len(rows)
        for shard, where, local in self._by_shard(rows):
            for place, text in zip(where, self._table(shard)["text"].take(pa.array(local)).to_pylist(), strict=True):
                out[place] = text
        return out

    def shard_documents(self, shard: int) -> pa.Table:
        """The rows of the table of documents that lie in a shard."""
        start, stop = np.searchsorted(self.documents["shard"].to_numpy(), [shard, shard + 1])
        return self.documents.slice(int(start), int(stop - start))

    def shard_rows(self, shard: int) -> tuple[int, int]:
        """Rows [start, stop) of the corpus that lie in a shard."""
        return int(self._shard_starts[shard]), int(self._shard_starts[shard + 1])

    def shard_files(self, shard: int) -> tuple[dict[str, np.ndarray], pa.Table]:
        """A shard as it is stored: its arrays by file name, memory-mapped, and its table of sentences."""
        names = [name for name in self.manifest["shards"][shard]["files"] if name.endswith(".npy")]
        return {name: self._npy(layout.shard_folder(self.path, shard) / name) for name in names}, self._table(shard)

    def release(self) -> None:
        """Let go of the shards held so far (mapped vectors, tables of sentences): for who passes over all of them once."""
        self._vectors.clear()
        self._tables.clear()

    def column(self, name: str) -> np.ndarray:
        """One numeric column of all sentences (section, part, n_tokens, truncated …), [n_sentences]."""
        files = [layout.shard_folder(self.path, shard) / layout.SENTENCES for shard in range(self.n_shards)]
        pieces = [self._parquet(file, [name])[name].to_numpy() for file in files]
        return np.concatenate(pieces) if pieces else np.zeros(0)

    def document_text(self, doc: int, texts: Sequence[str] | None = None) -> str:
        """The document as it was read, exactly, from its own sentences or from `texts` (read from its residual codes)."""
        pieces = [self.documents["lead"][doc].as_py()]
        for text, gap in zip(self.texts(doc) if texts is None else texts, self.sentences(doc)["gap"].to_pylist(), strict=True):
            pieces += (text, gap)
        return "".join(pieces)

    def _require_text(self) -> None:
        if not self.keeps_text:
            raise UserError(
                f"corpus {self.path} keeps its sentences as residual codes only; read them with: lsm inspect {self.path} --text"
            )

    def _place(self, doc: int) -> tuple[int, int, int]:
        start, stop = self.rows(doc)
        shard = int(self.documents["shard"][doc].as_py())
        offset = int(self._shard_starts[shard])
        return shard, start - offset, stop - offset

    def _by_shard(self, rows: np.ndarray) -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
        if len(rows) and (rows.min() < 0 or rows.max() >= self.n_sentences):
            raise IndexError(f"rows must lie in 0 … {self.n_sentences - 1}")
        shard_of = np.searchsorted(self._shard_starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            where = np.flatnonzero(shard_of == shard)
            yield int(shard), where, rows[where] - self._shard_starts[shard]

    def _part(self, name: str) -> dict[str, Any]:
        found = next((entry for entry in self.parts() if entry["name"] == name), None)
        if found is None:
            raise UserError(f"corpus {self.path} has no {name} part; encode it again with --residual learned")
        if found["scale"] == "code_steps":
            raise UserError(
                f"corpus {self.path}: its residual codes are superposition codes, which are no space to plan in; "
                "encode it again with --residual learned"
            )
        return found

    def _as_float16(self, stored: np.ndarray, part: str) -> np.ndarray:
        scale = self._part(part)["scale"]
        return stored if scale is None else (stored * np.float32(scale)).astype(np.float16)

    def _shard_vectors(self, shard: int, part: str) -> np.ndarray:
        entry = self._part(part)
        if (shard, part) not in self._vectors:
            path = layout.shard_folder(self.path, shard) / f"{part}.npy"
            array = self._npy(path)
            wanted = (self.manifest["shards"][shard]["n_sentences"], int(entry["dim"]))
            if array.shape != wanted or array.dtype != np.dtype(entry["dtype"]):
                raise self._broken(path, f"{array.dtype} {array.shape} instead of {entry['dtype']} {wanted}")
            self._vectors[shard, part] = array
        return self._vectors[shard, part]

    def _shard_array(self, shard: int, name: str, n_rows: int) -> np.ndarray:
        """Packed residual codes of a shard, uint8 [n_rows, bytes], memory-mapped."""
        path = layout.shard_folder(self.path, shard) / name
        array = self._npy(path)
        if array.dtype != np.uint8 or array.ndim != 2 or len(array) != n_rows:
            raise self._broken(path, f"{array.dtype} {array.shape} instead of uint8 {(n_rows,)}")
        return array

    def _npy(self, path: Path) -> np.ndarray:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._broken(path, error) from error

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._tables:
            path = layout.shard_folder(self.path, shard) / layout.SENTENCES
            table = self._parquet(path)
            if len(table) != self.manifest["shards"][shard]["n_sentences"]:
                raise self._broken(path, f"{len(table)} rows instead of {self.manifest['shards'][shard]['n_sentences']}")
            self._tables[shard] = table
            if len(self._tables) > _TABLES_KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard)
        return self._tables[shard]

    def _parquet(self, path: Path, columns: list[str] | None = None) -> pa.Table:
        try:
            return pq.read_table(path, columns=columns, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise self._broken(path, error) from error

    def _broken(self, path: Path, why: object) -> UserError:
        reason = " ".join(str(why).split())[:200]
        return UserError(
            f"{path} is damaged or missing ({reason}); run the {layout.maker(self.path)} command that made {self.path} again, "
            "which mends what is broken (lsm inspect --verify names it)"
        )
