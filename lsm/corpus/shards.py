"""The files of a corpus' shards, opened when they are asked for: arrays memory-mapped, tables in memory, few of either at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.corpus import format as layout
from lsm.corpus.npy import map_npy
from lsm.errors import UserError

_TABLES_KEPT = 16
"""A few MB each."""
_ARRAYS_KEPT = 512
"""Every map holds a file open before Python 3.13, of which a process often may have 1,024."""

T = TypeVar("T")


class ShardFiles:
    """Files of the shards that a manifest lists. Every damaged or missing one ends in a `UserError` that says how to mend it."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.shards = path, manifest["shards"]
        self._arrays = _Kept[np.ndarray](_ARRAYS_KEPT)
        self._tables = _Kept[pa.Table](_TABLES_KEPT)

    def vectors(self, shard: int, name: str, dtype: str, dim: int | None = None) -> np.ndarray:
        """An array with a row for each sentence, memory-mapped: [S, dim], or [S] without `dim`."""
        return self._arrays.get((shard, name), lambda: self._mapped(shard, name, dtype, dim))

    def packed(self, shard: int, name: str, n_rows: int) -> np.ndarray:
        """Packed residual codes, uint8 [n_rows, bytes], memory-mapped."""
        array = self.npy(shard, name)
        if array.dtype != np.uint8 or array.ndim != 2 or len(array) != n_rows:
            raise self.broken(self._file(shard, name), f"{array.dtype} {array.shape} instead of uint8 {(n_rows,)}")
        return array

    def npy(self, shard: int, name: str) -> np.ndarray:
        """An array as it is stored, memory-mapped, whatever it holds."""
        path = self._file(shard, name)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self.broken(path, error) from error

    def sentences(self, shard: int) -> pa.Table:
        """The table of a shard's sentences."""
        return self._tables.get((shard, layout.SENTENCES), lambda: self._table(shard, layout.SENTENCES, "n_sentences"))

    def documents(self, shard: int) -> pa.Table:
        """The table of a shard's documents."""
        return self._tables.get((shard, layout.DOCUMENTS), lambda: self._table(shard, layout.DOCUMENTS, "n_documents"))

    def parquet(self, path: Path, columns: list[str] | None = None) -> pa.Table:
        """A table of the corpus, or some of its columns."""
        try:
            return pq.read_table(path, columns=columns, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise self.broken(path, error) from error

    def release(self) -> None:
        """Let go of what is open: for who passes over all shards once."""
        self._arrays.clear()
        self._tables.clear()

    def broken(self, path: Path, why: object) -> UserError:
        """The error for a file that is damaged or missing."""
        reason = " ".join(str(why).split())[:200]
        return UserError(
            f"{path} is damaged or missing ({reason}); run the {layout.maker(self.path)} command that made {self.path} again, "
            "which mends what is broken (lsm inspect --verify names it)"
        )

    def _file(self, shard: int, name: str) -> Path:
        return layout.shard_folder(self.path, shard) / name

    def _mapped(self, shard: int, name: str, dtype: str, dim: int | None) -> np.ndarray:
        n_rows, path = self.shards[shard]["n_sentences"], self._file(shard, name)
        try:
            return map_npy(path, (n_rows,) if dim is None else (n_rows, dim), np.dtype(dtype).newbyteorder("<").str)
        except (OSError, ValueError, EOFError) as error:
            raise self.broken(path, error) from error

    def _table(self, shard: int, name: str, count: str) -> pa.Table:
        path, wanted = self._file(shard, name), self.shards[shard][count]
        table = self.parquet(path)
        if len(table) != wanted:
            raise self.broken(path, f"{len(table)} rows instead of {wanted}")
        return table


class _Kept(Generic[T]):
    """The `most` things that were asked for last."""

    def __init__(self, most: int) -> None:
        self._most, self._things = most, OrderedDict[Hashable, T]()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key in self._things:
            self._things.move_to_end(key)
            return self._things[key]
        thing = self._things[key] = make()
        if len(self._things) > self._most:
            self._things.popitem(last=False)
        return thing

    def clear(self) -> None:
        """Forget all."""
        self._things.clear()
