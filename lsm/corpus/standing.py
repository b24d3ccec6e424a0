"""What is there of each shard of a corpus, and can it be trusted? Files against the marker, the marker against the manifest."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lsm.corpus import format as layout
from lsm.corpus.writer import read_done, shard_record
from lsm.errors import UserError
from lsm.files import DONE_MARKER, read_json, sha256_file


@dataclass(frozen=True, kw_only=True)
class ShardState:
    """One shard as it is found."""

    done: dict[str, Any] | None = None
    """Its record, with which every file agrees; None = it is to be made."""
    problem: str | None = None
    """What is wrong with it, in a few words; None also where there never was one."""
    documents: list[tuple[str, str]] | None = None
    """(doc_id, text_sha256) of what a damaged shard held, where something that is whole tells."""
    entry: dict[str, Any] | None = None
    """Its record as the manifest has it."""


NOT_THERE = ShardState()


def shard_states(corpus: Path, *, threads: int = 1, suspects: Collection[int] | None = None) -> list[ShardState]:
    """The state of every shard that the folder holds or its manifest names; reads every file once (a second a GB and thread, or less).

    Where `suspects` are given, only their files are read: the markers of the others are believed.
    """
    manifest = readable_manifest(corpus)
    entries = [{key: value for key, value in entry.items() if key != "name"} for entry in manifest["shards"]] if manifest else []
    folders = [int(path.name) for path in (corpus / layout.SHARDS).glob("*") if path.name.isdecimal()]
    n = max([len(entries), *(index + 1 for index in folders)])

    @cache
    def table() -> dict[int, list[tuple[str, str]]]:
        return _documents_by_shard(corpus, manifest) if manifest else {}

    def state(index: int) -> ShardState:
        believe = suspects is not None and index not in suspects
        return _state(corpus, index, entries[index] if index < len(entries) else None, table, believe=believe)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(state, range(n)))


def readable_manifest(corpus: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none that can be read: everything in it can be told from the shards again."""
    try:
        manifest = read_json(corpus / layout.MANIFEST)
        entries = manifest["shards"]
        return manifest if all(isinstance(entry["n_documents"], int) for entry in entries) else None
    except (UserError, KeyError, TypeError):
        return None


def file_problem(folder: Path, files: Any) -> str | None:
    """The first file of a shard that is missing or differs from its hash."""
    for name, sha256 in files.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if sha256_file(folder / name) != sha256:
            return f"{name} differs from its hash (truncated or changed)"
    return None


def _state(
    corpus: Path, index: int, entry: dict[str, Any] | None, table: Callable[[], dict[int, list[tuple[str, str]]]], *, believe: bool
) -> ShardState:
    folder = layout.shard_folder(corpus, index)
    if entry is None and not folder.exists():
        return NOT_THERE
    done = None
    try:
        done = read_done(corpus, index)
        if done is None:
            problem = f"{DONE_MARKER} is missing" if folder.exists() else "it is missing"
        elif believe:
            problem = None
        else:
            problem = file_problem(folder, done["files"])
            # When the two agree, neither is damaged; when not, the tables tell which of them is.
            if problem is None and done != entry and done != shard_record(folder, done["files"]):
                problem = f"{DONE_MARKER} differs from the shard's files"
    except UserError:
        problem = f"{DONE_MARKER} is not valid JSON"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise  # a disk that fails, or forbids to read, is no damaged shard
        problem = " ".join(str(error).split())[:200]
    if problem is None:
        return ShardState(done=done, entry=entry)
    return ShardState(problem=problem, documents=_documents(folder, (entry, done)) or table().get(index), entry=entry)


def _documents(folder: Path, records: Iterable[Any]) -> list[tuple[str, str]] | None:
    """What a shard holds, by its own table, where a record vouches for that."""
    try:
        sha256 = sha256_file(folder / layout.DOCUMENTS)
        if sha256 not in [record["files"][layout.DOCUMENTS] for record in records if record]:
            return None
        return document_hashes(folder / layout.DOCUMENTS)
    except (OSError, LookupError, TypeError):
        return None


def _documents_by_shard(corpus: Path, manifest: dict[str, Any]) -> dict[int, list[tuple[str, str]]]:
    """The same of every shard, by the table of the whole corpus; empty when that is damaged as well."""
    path = corpus / layout.DOCUMENTS
    if not path.exists() or sha256_file(path) != manifest.get("documents_sha256"):
        return {}
    found: dict[int, list[tuple[str, str]]] = {}
    shards = pq.read_table(path, columns=["shard"], partitioning=None)["shard"].to_pylist()
    for shard, pair in zip(shards, document_hashes(path), strict=True):
        found.setdefault(shard, []).append(pair)
    return found


def document_hashes(path: Path) -> list[tuple[str, str]]:
    """(doc_id, text_sha256) of a table of documents."""
    table = pq.read_table(path, columns=["doc_id", "text_sha256"], partitioning=None)
    return list(zip(table["doc_id"].to_pylist(), table["text_sha256"].to_pylist(), strict=True))
