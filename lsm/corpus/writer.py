"""Writing a corpus: one atomic folder per shard, then the table of documents, then the manifest, last.

Shape letters: S sentences (rows of a shard), D vector width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.corpus import format as layout
from lsm.corpus.index import write_index
from lsm.corpus.npy import write_npy
from lsm.errors import UserError
from lsm.files import DONE_MARKER, atomic_folder, atomic_write, read_json, sha256_file, write_json


class SentenceLike(Protocol):
    """What the writer reads of a sentence (`lsm.text.segment.Sentence` has it)."""

    @property
    def text(self) -> str: ...
    @property
    def char_start(self) -> int: ...
    @property
    def char_end(self) -> int: ...
    @property
    def gap(self) -> str: ...
    @property
    def section(self) -> int: ...
    @property
    def part(self) -> int: ...


@dataclass(frozen=True)
class SegmentedDocument:
    """A document cut into sentences: lead + every sentence's text + gap is the document, exactly."""

    doc_id: str
    source: str
    title: str
    text_sha256: str
    n_characters: int
    lead: str
    sentences: Sequence[SentenceLike] = field(repr=False)


def text_sha256(text: str) -> str:
    """Hex sha256 of a document's UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def content_sha256(documents: Iterable[tuple[str, str]]) -> str:
    """Fingerprint of a shard's content from its (doc_id, text_sha256) pairs, in order."""
    digest = hashlib.sha256()
    for doc_id, sha256 in documents:
        digest.update(json.dumps([doc_id, sha256], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def write_shard(
    corpus: Path,
    index: int,
    documents: Sequence[SegmentedDocument],
    z_SD: np.ndarray,
    n_tokens: Sequence[int] | np.ndarray,
    truncated: Sequence[bool] | np.ndarray,
    *,
    residual: Mapping[str, np.ndarray] | None = None,
    keep_text: bool = True,
    writer: str = "",
) -> dict[str, Any]:
    """Write shard `index` as one atomic folder; returns its done record.

    Args:
        documents: the shard's documents, in order; their sentences are the rows.
        z_SD: sentence vectors, stored as float16.
        n_tokens: tokens the encoder read of each sentence, [S].
        truncated: whether the encoder cut the sentence, [S].
        residual: arrays of a residual code: `residual`, `residual-more` where a sentence may have several, and its columns
            (`format.RESIDUAL_SCHEMAS`).
        keep_text: False leaves the sentences' text out: the residual code is all that is left of it.
        writer: makes the name of the half-written folder its own, where several processes write into one corpus.

    Raises:
        UserError: a vector is not finite in float16, the disk is full, or the folder cannot be written.
    """
    counts = [len(document.sentences) for document in documents]
    assert z_SD.ndim == 2 and len(z_SD) == sum(counts) == len(n_tokens) == len(truncated)
    with np.errstate(over="ignore"):
        half_SD = np.ascontiguousarray(z_SD, dtype="<f2")
    _refuse_not_finite(half_SD, documents)
    assert keep_text or residual is not None
    sentences = _sentence_table(documents, n_tokens, truncated, keep_text=keep_text)
    arrays = {layout.SEMANTIC: half_SD}
    if residual is not None:
        sentences = _with_residual(sentences, residual)
        files = {"residual": layout.RESIDUAL, "residual-more": layout.RESIDUAL_MORE}
        arrays |= {files[name]: array for name, array in residual.items() if name in files}
    return write_shard_arrays(corpus, index, arrays, sentences, _document_table(index, documents), writer=writer)


def write_shard_arrays(
    corpus: Path, index: int, arrays: Mapping[str, np.ndarray], sentences: pa.Table, documents: pa.Table, *, writer: str = ""
) -> dict[str, Any]:
    """Write shard `index` from what its files hold: arrays by file name, and the two tables; returns its done record."""
    tables = {layout.SENTENCES: sentences, layout.DOCUMENTS: documents}
    with atomic_folder(layout.shard_folder(corpus, index), writer=writer) as folder:
        for name, array in arrays.items():
            with open(folder / name, "wb") as handle:
                write_npy(handle, np.ascontiguousarray(array))
        for name, table in tables.items():
            write_parquet(folder / name, table)
        done = _record({name: sha256_file(folder / name) for name in (*arrays, *tables)}, sentences, documents)
        write_json(folder / DONE_MARKER, done)
    return done


def shard_record(folder: Path, files: Mapping[str, str]) -> dict[str, Any]:
    """The record that a shard's files, whose hashes are `files`, deserve."""
    sentences = pq.read_table(folder / layout.SENTENCES, columns=["n_tokens", "truncated"], partitioning=None)
    return _record(dict(files), sentences, pq.read_table(folder / layout.DOCUMENTS, partitioning=None))


def _record(files: dict[str, str], sentences: pa.Table, documents: pa.Table) -> dict[str, Any]:
    return {
        "content_sha256": content_sha256(zip(documents["doc_id"].to_pylist(), documents["text_sha256"].to_pylist(), strict=True)),
        "files": files,
        "n_characters": int(documents["n_characters"].to_numpy().sum(dtype=np.int64)),
        "n_documents": len(documents),
        "n_sentences": len(sentences),
        "n_tokens": int(sentences["n_tokens"].to_numpy().sum(dtype=np.int64)),
        "n_truncated": int(sentences["truncated"].to_numpy().sum(dtype=np.int64)),
    }


def read_done(corpus: Path, index: int) -> dict[str, Any] | None:
    """The done record of shard `index`, or None when the shard does not exist (no marker = no shard)."""
    marker = layout.shard_folder(corpus, index) / DONE_MARKER
    return read_json(marker) if marker.exists() else None


def write_manifest(
    corpus: Path,
    n_shards: int,
    encoder: dict[str, Any],
    segmentation: dict[str, Any],
    *,
    residual: dict[str, Any] | None = None,
    keep_text: bool = True,
    semantic_dtype: str = "float16",
) -> dict[str, Any]:
    """Make a corpus of the first `n_shards` finished shards: `documents.parquet`, the index, then `manifest.json`, last.

    The tables are joined shard by shard, so memory stays bounded by one shard.
    """
    shards: list[dict[str, Any]] = []
    with atomic_write(corpus / layout.DOCUMENTS) as handle, pq.ParquetWriter(handle, layout.DOCUMENT_SCHEMA, compression="zstd") as writer:
        for index in range(n_shards):
            done = read_done(corpus, index)
            if done is None:
                folder = layout.shard_folder(corpus, index)
                raise UserError(f"{folder} is missing; run the {layout.maker(corpus)} command that made it again")
            writer.write_table(pq.read_table(layout.shard_folder(corpus, index) / layout.DOCUMENTS, schema=layout.DOCUMENT_SCHEMA))
            shards.append(done)
    how: dict[str, Any] = {"residual": residual, "keep_text": keep_text, "semantic_dtype": semantic_dtype}
    manifest = manifest_of(shards, sha256_file(corpus / layout.DOCUMENTS), encoder, segmentation, **how)
    write_index(corpus, manifest)
    write_json(corpus / layout.MANIFEST, manifest)
    return manifest


def manifest_of(
    shards: Sequence[dict[str, Any]],
    documents_sha256: str,
    encoder: dict[str, Any],
    segmentation: dict[str, Any],
    *,
    residual: dict[str, Any] | None = None,
    keep_text: bool = True,
    semantic_dtype: str = "float16",
) -> dict[str, Any]:
    """The manifest of a corpus with these shards' records: nothing in it stands there alone, so it can be told again."""
    return {
        "format": layout.FORMAT,
        "format_version": layout.FORMAT_VERSION_INT8 if semantic_dtype == "int8" else layout.FORMAT_VERSION,
        "encoder": encoder,
        "residual": residual,
        "text": "kept" if keep_text else "dropped",
        "parts": [layout.semantic_part(int(encoder["dim"]), semantic_dtype), *([layout.residual_part(residual)] if residual else [])],
        "segmentation": segmentation,
        "documents_sha256": documents_sha256,
        "shards": [{"name": layout.shard_name(index), **done} for index, done in enumerate(shards)],
        **{key: sum(shard[key] for shard in shards) for key in ("n_documents", "n_sentences", "n_characters", "n_tokens", "n_truncated")},
    }


def write_corpus(
    corpus: Path, documents: Sequence[SegmentedDocument], z_SD: np.ndarray, encoder: dict[str, Any], *, documents_per_shard: int = 1000
) -> dict[str, Any]:
    """Write a whole small corpus from vectors in memory (tests, tools); returns its manifest.

    Args:
        documents: all documents; their sentences, in order, are the rows of `z_SD`.
        encoder: the fingerprint to carry; at least `name` and `dim`.
    """
    assert documents_per_shard > 0
    row = n_shards = 0
    for first in range(0, len(documents), documents_per_shard):
        some = documents[first : first + documents_per_shard]
        stop = row + sum(len(document.sentences) for document in some)
        write_shard(corpus, n_shards, some, z_SD[row:stop], np.zeros(stop - row, np.int32), np.zeros(stop - row, bool))
        row, n_shards = stop, n_shards + 1
    corpus.mkdir(parents=True, exist_ok=True)
    return write_manifest(corpus, n_shards, encoder, {})


def write_parquet(path: Path, table: pa.Table) -> None:
    """A parquet file with the same bytes for the same table (zstd, one row group, no pandas metadata)."""
    with open(path, "wb") as handle:
        pq.write_table(table, handle, compression="zstd", row_group_size=max(len(table), 1))


def _with_residual(sentences: pa.Table, residual: Mapping[str, np.ndarray]) -> pa.Table:
    """The table of sentences with the columns of the code's kind at its end."""
    for column in layout.RESIDUAL_SCHEMAS["superposition" if "code_steps" in residual else "learned"]:
        values = pa.array(residual[column.name], pa.uint16() if column.name == "code_steps" else column.type)
        if column.name == "code_steps":
            ends = np.cumsum(residual["code_count"], dtype=np.int64)
            values = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]).astype(np.int32)), values)
        sentences = sentences.append_column(column, values)
    return sentences


def _sentence_table(documents: Sequence[SegmentedDocument], n_tokens: Any, truncated: Any, *, keep_text: bool) -> pa.Table:
    counts = np.array([len(document.sentences) for document in documents], dtype=np.int32)
    rows = [sentence for document in documents for sentence in document.sentences]
    doc_ids = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(len(documents), dtype=np.int32), counts)), pa.array([d.doc_id for d in documents], pa.string())
    )
    columns: dict[str, Any] = {
        "doc_id": doc_ids,
        "index": np.concatenate([np.arange(n, dtype=np.int32) for n in counts] or [np.zeros(0, np.int32)]),
        "n_tokens": np.asarray(n_tokens, dtype=np.int32),
        "truncated": np.asarray(truncated, dtype=bool),
    }
    for name in ("section", "part", "text", "char_start", "char_end", "gap"):
        columns[name] = [getattr(row, name) if keep_text or name != "text" else None for row in rows]
    arrays = [
        columns[name] if name == "doc_id" else pa.array(columns[name], kind)
        for name, kind in zip(layout.SENTENCE_SCHEMA.names, layout.SENTENCE_SCHEMA.types, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=layout.SENTENCE_SCHEMA)


def _document_table(shard: int, documents: Sequence[SegmentedDocument]) -> pa.Table:
    first_row, rows = 0, []
    for document in documents:
        row = {name: getattr(document, name) for name in ("doc_id", "source", "title", "lead", "text_sha256", "n_characters")}
        rows.append(row | {"shard": shard, "first_row": first_row, "n_sentences": len(document.sentences)})
        first_row += len(document.sentences)
    return pa.Table.from_pylist(rows, schema=layout.DOCUMENT_SCHEMA)


def _refuse_not_finite(half_SD: np.ndarray, documents: Sequence[SegmentedDocument]) -> None:
    bad = np.flatnonzero(~np.isfinite(half_SD).all(axis=1))
    if not len(bad):
        return
    row = int(bad[0])
    for document in documents:
        if row < len(document.sentences):
            raise UserError(
                f"document {document.doc_id!r}, sentence {row}: the encoder gave a vector that is not finite in float16 "
                f"({len(bad)} such rows in this shard); choose another --encoder, or take the sentence out"
            )
        row -= len(document.sentences)
