"""Reading a corpus: vectors and the index memory-mapped, texts loaded shard by shard when asked for.

Shape letters: S sentences of a document, D vector width, B rows asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lsm.corpus import format as layout
from lsm.corpus.index import open_index
from lsm.corpus.int8 import from_int8
from lsm.corpus.shards import ShardFiles
from lsm.errors import UserError
from lsm.files import fingerprint, read_json

_VERSIONS = (layout.FORMAT_VERSION, layout.FORMAT_VERSION_INT8)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a corpus; `UserError` where the file is something else or was written by a newer lsm."""
    try:
        manifest = read_json(path)
    except UserError as error:
        raise UserError(layout.broken_manifest(path.parent, "it is not JSON")) from error
    if not isinstance(manifest, dict) or manifest.get("format") != layout.FORMAT:
        raise UserError(f"{path} is not the manifest of a corpus; name the folder that encode-corpus wrote")
    if (version := manifest.get("format_version")) not in _VERSIONS:
        raise UserError(f"corpus {path.parent} has format version {version}, this lsm reads {_VERSIONS[-1]} and older; update lsm")
    return manifest


_NEEDED = ("encoder", "residual", "parts", "segmentation", "n_documents", "n_sentences", "n_characters", "n_tokens", "n_truncated")
"""Keys that every manifest has (`text` came later)."""


class Corpus:
    """A finished corpus on disk. Documents are numbered 0 … n_documents − 1, rows (sentences) 0 … n_sentences − 1 throughout.

    Opening reads the manifest only. Rows of one document are neighbours, in reading order.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self._files = ShardFiles(path, manifest)
        self._shard_starts, self._shard_documents = (
            np.concatenate([[0], np.cumsum([shard[key] for shard in manifest["shards"]], dtype=np.int64)]).astype(np.int64)
            for key in ("n_sentences", "n_documents")
        )

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
            if layout.is_unfinished(path):
                raise UserError(
                    f"corpus {path} is unfinished (no {layout.MANIFEST}); run its {layout.maker(path)} command again to finish it"
                )
            raise UserError(f"{path} is not a corpus (no {layout.MANIFEST}); make one with: lsm encode-corpus INPUT --out DIR")
        manifest = read_manifest(path / layout.MANIFEST)
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
        """The whole table of documents (`format.DOCUMENT_SCHEMA`), one row a document; `document_column` reads less."""
        return self._document_table(None)

    def document_column(self, name: str) -> pa.ChunkedArray:
        """One column of the table of documents."""
        return self._document_table([name])[name]

    @cached_property
    def doc_ids(self) -> list[str]:
        """Every document's id, in order."""
        return self.document_column("doc_id").to_pylist()

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of every document and, last, n_sentences: int64 [n_documents + 1], memory-mapped where there is an index."""
        if self._index is not None:
            return self._index["starts"]
        lengths = self.document_column("n_sentences").to_numpy()
        return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)

    @cached_property
    def _index(self) -> dict[str, np.ndarray] | None:
        return open_index(self.path, self.manifest)

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
            part: semantic, a view into the memory-mapped shard, or a copy where they are stored as int8; or residual, a copy of its
                learned codes in their own unit (superposition codes are no vectors: `residual_arrays`).
        """
        shard, first, stop = self._place(doc)
        return self._float16(shard, part, slice(first, stop))

    def vector_at(self, rows: Sequence[int] | np.ndarray, part: str = "semantic") -> np.ndarray:
        """Sentence vectors of any rows, float16 [B, D], in the order asked for."""
        rows = np.asarray(rows, dtype=np.int64)
        out_BD = np.empty((len(rows), int(self._part(part)["dim"])), dtype=np.float16)
        for shard, where, local in self._by_shard(rows):
            out_BD[where] = self._float16(shard, part, local)
        return out_BD

    def residual_arrays(self, doc: int) -> dict[str, np.ndarray]:
        """The superposition codes of a document, as `lsm.codes.storage.from_arrays` takes them."""
        assert self.residual is not None and self.residual["kind"] == "superposition"
        shard, first, stop = self._place(doc)
        table = self._files.sentences(shard)
        names = [name for name in layout.RESIDUAL_SCHEMAS["superposition"].names if name != "code_steps"]
        arrays = {name: table[name].to_numpy()[first:stop] for name in names}
        more_S = table["code_count"].to_numpy().astype(np.int64) - 1
        begin = int(more_S[:first].sum())
        arrays["residual"] = self._files.packed(shard, layout.RESIDUAL, len(table))[first:stop]
        more = self._files.packed(shard, layout.RESIDUAL_MORE, int(more_S.sum()))
        arrays["residual-more"] = more[begin : begin + int(more_S[first:stop].sum())]
        arrays["code_steps"] = table["code_steps"].slice(first, stop - first).combine_chunks().flatten().to_numpy()
        return arrays

    def sentences(self, doc: int) -> pa.Table:
        """The table of a document's sentences (`format.SENTENCE_SCHEMA`)."""
        shard, first, stop = self._place(doc)
        return self._files.sentences(shard).slice(first, stop - first)

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
            for place, text in zip(where, self._files.sentences(shard)["text"].take(pa.array(local)).to_pylist(), strict=True):
                out[place] = text
        return out

    def shard_of(self, doc: int) -> int:
        """The shard in which a document lies."""
        return int(np.searchsorted(self._shard_documents, doc, side="right")) - 1

    def shard_documents(self, shard: int) -> pa.Table:
        """The table of the documents that lie in a shard."""
        return self._files.documents(shard)

    def shard_rows(self, shard: int) -> tuple[int, int]:
        """Rows [start, stop) of the corpus that lie in a shard."""
        return int(self._shard_starts[shard]), int(self._shard_starts[shard + 1])

    def shard_files(self, shard: int) -> tuple[dict[str, np.ndarray], pa.Table]:
        """A shard as it is stored: its arrays by file name, memory-mapped, and its table of sentences."""
        names = [name for name in self.manifest["shards"][shard]["files"] if name.endswith(".npy")]
        return {name: self._files.npy(shard, name) for name in names}, self._files.sentences(shard)

    def release(self) -> None:
        """Let go of the shards held so far (mapped vectors, tables of sentences): for who passes over all of them once."""
        self._files.release()

    def column(self, name: str) -> np.ndarray:
        """One numeric column of all sentences (section, part, n_tokens, truncated …), [n_sentences]; not to be written into.

        `section` and `part` are memory-mapped where there is an index; anything else is read as a whole.
        """
        if self._index is not None and name in self._index:
            return self._index[name]
        files = [layout.shard_folder(self.path, shard) / layout.SENTENCES for shard in range(self.n_shards)]
        pieces = [self._files.parquet(file, [name])[name].to_numpy() for file in files]
        return np.concatenate(pieces) if pieces else np.zeros(0)

    def document_text(self, doc: int, texts: Sequence[str] | None = None) -> str:
        """The document as it was read, exactly, from its own sentences or from `texts` (read from its residual codes)."""
        shard = self.shard_of(doc)
        pieces = [self.shard_documents(shard)["lead"][doc - int(self._shard_documents[shard])].as_py()]
        for text, gap in zip(self.texts(doc) if texts is None else texts, self.sentences(doc)["gap"].to_pylist(), strict=True):
            pieces += (text, gap)
        return "".join(pieces)

    def _require_text(self) -> None:
        if not self.keeps_text:
            raise UserError(
                f"corpus {self.path} keeps its sentences as residual codes only; read them with: lsm inspect {self.path} --text"
            )

    def _document_table(self, columns: list[str] | None) -> pa.Table:
        table = self._files.parquet(self.path / layout.DOCUMENTS, columns)
        if len(table) < self.n_documents:
            raise UserError(f"{self.path / layout.DOCUMENTS} lists {len(table)} documents, the manifest {self.n_documents}; encode again")
        # An append that died between this table and the manifest has left further rows: they do not exist yet.
        return table.slice(0, self.n_documents)

    def _place(self, doc: int) -> tuple[int, int, int]:
        """Shard of a document, and its rows [first, stop) there."""
        start, stop = self.rows(doc)
        shard = self.shard_of(doc)
        offset = int(self._shard_starts[shard])
        return shard, start - offset, stop - offset

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Shard, places in `rows`, and rows inside the shard, for every shard that holds some."""
        if not len(rows):
            return
        if rows.min() < 0 or rows.max() >= self.n_sentences:
            raise IndexError(f"rows must lie in 0 … {self.n_sentences - 1}")
        shard_B = np.searchsorted(self._shard_starts, rows, side="right") - 1
        order_B = np.argsort(shard_B, kind="stable")
        for where in np.split(order_B, np.flatnonzero(np.diff(shard_B[order_B])) + 1):
            shard = int(shard_B[where[0]])
            yield shard, where, rows[where] - self._shard_starts[shard]

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

    def _float16(self, shard: int, part: str, rows: slice | np.ndarray) -> np.ndarray:
        """Vectors of some rows of a shard, a view where they are stored as float16 and asked for by a slice."""
        entry = self._part(part)
        stored = self._files.vectors(shard, f"{part}.npy", entry["dtype"], int(entry["dim"]))[rows]
        if entry["scale"] is None:
            return stored
        if entry["scale"] == "rows":
            return from_int8(stored, self._files.vectors(shard, f"{part}-scale.npy", "float32")[rows])
        return (stored * np.float32(entry["scale"])).astype(np.float16)
