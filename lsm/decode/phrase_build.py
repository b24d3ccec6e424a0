"""Building a phrase store on disk in bounded memory: texts and vectors stream from the corpus' shards, and FILE changes only at the end.

Everything is made in the folder FILE.partial, which a killed build leaves behind and the next one clears. Then FILE.json goes, the parts
are renamed, and FILE.json is written: at every moment there is the old store, none, or the new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.decode.index_kinds import ROWS_AT_ONCE, Choice, Cost, Wanted, build_index, choose, cost, empty_index, require_enough
from lsm.decode.index_kinds import efforts as efforts_of
from lsm.decode.nearest import Nearest
from lsm.decode.phrase_store import ABOUT, INDEX, TEXTS, VECTORS, PhraseStore, mapped, part_path, write_index
from lsm.decode.pieces import Pieces
from lsm.decode.recall import Measured, tune_and_measure
from lsm.decode.vectors import Encode, unit
from lsm.errors import UserError
from lsm.files import TEMPORARY_SUFFIX, atomic_write, explained, write_json
from lsm.lock import LOCK, only_writer
from lsm.progress import Progress, duration, say

_TEXT_BYTES = 120
"""A sentence's text, id and numbers on disk before compression, for the plan."""


@dataclass(frozen=True)
class Built:
    """A finished store."""

    about: dict[str, Any]
    """What FILE.json says."""
    choice: Choice
    cost: Cost
    measured: Measured


def build_store(
    pieces: Pieces,
    path: Path,
    *,
    wanted: Wanted = "auto",
    encode: Encode | None = None,
    stand_in: Callable[[Any], Any] | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> Built:
    """Write the store of `pieces` at `path`, replacing one that is there, and measure it.

    Args:
        encode: texts → vectors float32 [N, D] of the corpus' encoder; needed for phrases only.
        stand_in: see `index_kinds.build_index`.

    Raises:
        UserError: another build writes there, the disk is too small or cannot be written, or the kind does not fit so few vectors.
    """
    assert (encode is not None) == pieces.phrases
    n, dim = len(pieces), pieces.corpus.dim
    choice = choose(n, wanted)
    require_enough(choice.kind, n)
    costs = cost(choice.kind, n, dim)
    say(plan_line(pieces, choice, costs), quiet=quiet)
    _require_space(path, costs.disk_bytes + n * _TEXT_BYTES)
    scratch = path.with_name(path.name + TEMPORARY_SUFFIX)
    if scratch.is_file():
        scratch.unlink()
    try:
        with only_writer(scratch), explained(path):
            _clear(scratch)
            try:
                about, measured = _build_in(scratch, pieces, choice, path, encode, stand_in, seed=seed, quiet=quiet)
            finally:
                _clear(scratch)
    finally:
        with contextlib.suppress(OSError):  # another build may have begun there
            scratch.rmdir()
    return Built(about, choice, costs, measured)


def _build_in(
    scratch: Path,
    pieces: Pieces,
    choice: Choice,
    path: Path,
    encode: Encode | None,
    stand_in: Callable[[Any], Any] | None,
    *,
    seed: int,
    quiet: bool,
) -> tuple[dict[str, Any], Measured]:
    n, dim, made = len(pieces), pieces.corpus.dim, scratch / "store"
    if choice.kind == "flat":
        index = empty_index(choice.kind, n, dim)
        _stream(pieces, made, index, encode, quiet=quiet)
        nearest = Nearest(index)
        vectors_at = nearest.vectors
    else:
        _stream(pieces, made, None, encode, quiet=quiet)

        def vectors_at(rows: np.ndarray) -> np.ndarray:
            return mapped(part_path(made, VECTORS))[rows]  # mapped anew for every block, so that what was read is not held

        index = build_index(choice.kind, n, dim, vectors_at, what=pieces.what, stand_in=stand_in, quiet=quiet)
        z_ND = mapped(part_path(made, VECTORS))
        nearest = Nearest(index, lambda rows: z_ND[rows], efforts_of(choice.kind)[0])
    say("measuring recall and time of a query", quiet=quiet)
    measured = tune_and_measure(nearest, choice.kind, n, dim, vectors_at, seed=seed)
    with atomic_write(made) as handle:
        write_index(nearest, handle)
    nothing = pa.table({"text": pa.array([], pa.string()), "doc_id": pa.array([], pa.string())})
    about = PhraseStore(nearest, nothing, pieces.corpus.encoder, pieces.corpus.fingerprint).describe(made)
    about |= {"n_sentences": n, "kind": choice.kind, "measured": measured.to_dict()}
    _publish(made, path, about)
    return about, measured


def _clear(scratch: Path) -> None:
    for item in scratch.iterdir():
        if item.name != LOCK:
            item.unlink()


def plan_line(pieces: Pieces, choice: Choice, costs: Cost) -> str:
    """What is about to be built and what it takes."""
    return (
        f"{len(pieces):,} distinct {pieces.what}, {pieces.corpus.dim} dims: {choice.kind} ({choice.reason}); about "
        f"{costs.build_bytes / 2**20:,.0f} MiB of memory to build, {costs.open_bytes / 2**20:,.0f} MiB when open, "
        f"{costs.disk_bytes / 2**20:,.0f} MiB on disk (each beside the texts), {duration(costs.seconds)}"
    )


def _stream(pieces: Pieces, made: Path, flat: Any, encode: Encode | None, *, quiet: bool) -> None:
    """One pass over the corpus: texts to their file, vectors into a flat index or to a file of their own."""
    corpus, n = pieces.corpus, len(pieces)
    with contextlib.ExitStack() as stack:
        texts_file = stack.enter_context(atomic_write(part_path(made, TEXTS)))
        vectors_file = stack.enter_context(atomic_write(part_path(made, VECTORS))) if flat is None else None
        if vectors_file is not None:
            header = {"descr": "<f2", "fortran_order": False, "shape": (n, corpus.dim)}
            np.lib.format.write_array_header_1_0(vectors_file, header)
        schema = pa.schema([("text", pa.string()), ("doc_id", pa.string())])
        if not pieces.phrases:
            schema = schema.append(pa.field("row", pa.int64())).append(pa.field("times", pa.int64()))
        writer = stack.enter_context(pq.ParquetWriter(texts_file, schema, compression="zstd"))
        title = "encoding and copying" if encode else "copying texts and vectors"
        progress = stack.enter_context(Progress(title, n, pieces.what, quiet=quiet))
        for table in pieces.tables(ROWS_AT_ONCE):
            writer.write_table(table.cast(schema))
            z_BD = encode(table["text"].to_pylist()) if encode else corpus.vector_at(table["row"].to_numpy())
            if vectors_file is None:
                flat.add(unit(z_BD))
            else:
                vectors_file.write(np.ascontiguousarray(z_BD, dtype="<f2").tobytes())
            progress.advance(len(table))


def _publish(made: Path, path: Path, about: dict[str, Any]) -> None:
    part_path(path, ABOUT).unlink(missing_ok=True)
    for part in (INDEX, TEXTS, VECTORS):
        if part in about["sha256"]:
            os.replace(part_path(made, part), part_path(path, part))
        else:
            part_path(path, part).unlink(missing_ok=True)
    write_json(part_path(path, ABOUT), about)  # flushes the folder's entries too


def _require_space(path: Path, n_bytes: int) -> None:
    if not path.parent.exists():
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise UserError(
            f"--out {path}: about {n_bytes / 2**20:,.0f} MiB are needed there and {free / 2**20:,.0f} MiB are free; free some or choose "
            "another place"
        )
