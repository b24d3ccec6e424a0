"""What sampling asks of every row, memory-mapped beside the shards, so that opening a corpus of 10⁸ rows reads none of its tables.

    corpus/index/ starts.npy   int64 [documents + 1]: first row of every document and, last, the number of rows
                  section.npy  int32 [rows], as in sentences.parquet
                  part.npy     int32 [rows], as in sentences.parquet
                  done.json    made_of: fingerprint of the tables it was made of; files: {name: sha256}

All of it follows from the tables: it is no part of the manifest or of the corpus' fingerprint, and a corpus without it, or with one of
other tables (an append that has not ended), is read all the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.corpus import format as layout
from lsm.corpus.npy import map_npy, npy_header
from lsm.errors import UserError
from lsm.files import DONE_MARKER, atomic_folder, fingerprint, read_json, sha256_file, write_json

STARTS = "starts"
COLUMNS = ("section", "part")
_STARTS_DTYPE, _COLUMN_DTYPE = "<i8", "<i4"


def write_index(corpus: Path, manifest: dict[str, Any]) -> None:
    """Write the index of the shards that `manifest` lists, one shard at a time."""
    names = [f"{name}.npy" for name in (STARTS, *COLUMNS)]
    with atomic_folder(corpus / layout.INDEX) as folder:
        handles = {name: open(folder / f"{name}.npy", "wb") for name in (STARTS, *COLUMNS)}  # noqa: SIM115
        try:
            for name, handle in handles.items():
                handle.write(npy_header(*_kind(name, manifest)))
            handles[STARTS].write(np.zeros(1, _STARTS_DTYPE).tobytes())
            row = 0
            for shard in range(len(manifest["shards"])):
                ends, columns = _of_shard(corpus, shard, row)
                handles[STARTS].write(ends.tobytes())
                for name in COLUMNS:
                    handles[name].write(columns[name].tobytes())
                row += len(columns[COLUMNS[0]])
        finally:
            for handle in handles.values():
                handle.close()
        write_json(folder / DONE_MARKER, {"made_of": _made_of(manifest), "files": {name: sha256_file(folder / name) for name in names}})


def open_index(corpus: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """`starts`, `section` and `part`, memory-mapped; None where there is no index of these tables.

    Raises:
        UserError: there is one, but its files are damaged.
    """
    folder = corpus / layout.INDEX
    if not (folder / DONE_MARKER).exists():
        return None
    done = read_json(folder / DONE_MARKER)
    if not isinstance(done, dict) or done.get("made_of") != _made_of(manifest):
        return None
    try:
        return {name: map_npy(folder / f"{name}.npy", *_kind(name, manifest)) for name in (STARTS, *COLUMNS)}
    except (OSError, ValueError, EOFError) as error:
        raise _broken(folder, " ".join(str(error).split())[:200]) from error


def require_whole_index(corpus: Path, manifest: dict[str, Any]) -> None:
    """Raise `UserError` where the index, if there is one of these tables, differs from its hashes or from the tables."""
    folder = corpus / layout.INDEX
    index = open_index(corpus, manifest)
    if index is None:
        return
    for name, sha256 in read_json(folder / DONE_MARKER).get("files", {}).items():
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
            raise _broken(folder, f"{name} differs from its hash")
    document = row = 0
    for shard, entry in enumerate(manifest["shards"]):
        ends, columns = _of_shard(corpus, shard, row)
        n_documents, n_rows = entry["n_documents"], entry["n_sentences"]
        same = np.array_equal(index[STARTS][document + 1 : document + 1 + n_documents], ends)
        if not same or any(not np.array_equal(index[name][row : row + n_rows], columns[name]) for name in COLUMNS):
            raise _broken(folder, f"it contradicts the tables of shard {entry['name']}")
        document, row = document + n_documents, row + n_rows


def mend_index(corpus: Path, manifest: dict[str, Any]) -> None:
    """Write the index where there is none of these tables, or a damaged one."""
    try:
        require_whole_index(corpus, manifest)
        if open_index(corpus, manifest) is not None:
            return
    except UserError:
        pass
    write_index(corpus, manifest)


def _of_shard(corpus: Path, shard: int, row: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Where the documents of a shard end when its first sentence is row `row`, and the columns of its sentences."""
    folder = layout.shard_folder(corpus, shard)
    try:
        lengths = pq.read_table(folder / layout.DOCUMENTS, columns=["n_sentences"], partitioning=None)["n_sentences"].to_numpy()
        table = pq.read_table(folder / layout.SENTENCES, columns=list(COLUMNS), partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder} is damaged ({' '.join(str(error).split())[:200]}); delete it and run its {layout.maker(corpus)} command again"
        ) from error
    ends = row + np.cumsum(lengths, dtype=np.int64)
    return ends.astype(_STARTS_DTYPE), {name: table[name].to_numpy().astype(_COLUMN_DTYPE) for name in COLUMNS}


def _kind(name: str, manifest: dict[str, Any]) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of a file of the index."""
    if name == STARTS:
        return (int(manifest["n_documents"]) + 1,), _STARTS_DTYPE
    return (int(manifest["n_sentences"]),), _COLUMN_DTYPE


def _made_of(manifest: dict[str, Any]) -> str:
    return fingerprint([manifest["documents_sha256"], [shard["files"][layout.SENTENCES] for shard in manifest["shards"]]])


def _broken(folder: Path, why: str) -> UserError:
    return UserError(
        f"{folder} is damaged ({why}); run the command that made the corpus again, or delete that folder: it is read without it"
    )
