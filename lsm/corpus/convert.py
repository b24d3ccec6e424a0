"""A corpus as plain parquet files, a row a sentence with its vector, for what else reads parquet: pandas, DuckDB, Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.corpus.derive import require_hashes
from lsm.corpus.format import SENTENCE_SCHEMA, shard_name
from lsm.corpus.reader import Corpus
from lsm.files import atomic_folder, write_json

Precision = Literal["float32", "float16"]
_ROW_GROUP = 4096


def to_parquet(
    corpus: Corpus, out: Path, *, precision: Precision = "float32", advance: Callable[[int], None] = lambda n: None
) -> list[str]:
    """Write a folder of parquet files, one a shard, that appears when all are there.

    Columns: those of the table of sentences (`doc_id` as plain text), `semantic`, a list of D numbers, and `residual` where the corpus has
    learned codes, in their own unit. `data/` holds the files as Hugging Face's `load_dataset("parquet", data_dir=…)` finds them;
    `encoder.json` says whose vectors they are.

    Args:
        precision: of the vectors; float16 is what the corpus holds, float32 what more programs read.
        advance: called with the number of sentences of each shard.

    Returns:
        The files' names.

    Raises:
        UserError: a shard is damaged.
    """
    with atomic_folder(out) as folder:
        (folder / "data").mkdir()
        names = []
        for shard in range(corpus.n_shards):
            require_hashes(corpus, shard)
            name = f"data/train-{shard_name(shard)}-of-{shard_name(corpus.n_shards)}.parquet"
            with pq.ParquetWriter(folder / name, schema(corpus, precision), compression="zstd") as writer:
                for table in tables(corpus, shard, precision):
                    writer.write_table(table, row_group_size=_ROW_GROUP)
            names.append(name)
            advance(corpus.manifest["shards"][shard]["n_sentences"])
        write_json(folder / "encoder.json", {"encoder": corpus.encoder, "residual": corpus.residual, "corpus": corpus.fingerprint})
    return names


def schema(corpus: Corpus, precision: Precision) -> pa.Schema:
    """Columns of the converted corpus."""
    kind = pa.float32() if precision == "float32" else pa.float16()
    fields = [pa.field("doc_id", pa.string()), *list(SENTENCE_SCHEMA)[1:]]
    return pa.schema([*fields, *(pa.field(name, pa.list_(kind, dim)) for name, dim in _vector_parts(corpus))])


def tables(corpus: Corpus, shard: int, precision: Precision) -> Iterator[pa.Table]:
    """A shard's rows, some thousands at a time."""
    wanted = schema(corpus, precision)
    first, _ = corpus.shard_rows(shard)
    _, sentences = corpus.shard_files(shard)
    sentences = sentences.set_column(0, "doc_id", sentences["doc_id"].cast(pa.string())).select(wanted.names[: len(SENTENCE_SCHEMA)])
    for start in range(0, len(sentences), _ROW_GROUP):
        some = sentences.slice(start, _ROW_GROUP)
        rows = np.arange(first + start, first + start + len(some))
        columns = [column.combine_chunks() for column in some.columns]
        for name, dim in _vector_parts(corpus):
            values = corpus.vector_at(rows, name).astype(precision).reshape(-1)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values), dim))
        yield pa.Table.from_arrays(columns, schema=wanted)


def _vector_parts(corpus: Corpus) -> list[tuple[str, int]]:
    """Name and width of every part that is a vector; superposition codes are none."""
    return [(part["name"], int(part["dim"])) for part in corpus.parts() if part["scale"] != "code_steps"]
