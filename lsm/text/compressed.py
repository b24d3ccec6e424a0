"""Files as they are or compressed (.gz .zst .bz2 .xz) → bytes, a stretch at a time."""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsm.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""By the last ending of a file's name."""
_BUFFER_BYTES = 2**20


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A buffered binary stream of what the file holds, decompressed on the way; archives of several frames are read to their end.

    Raises:
        UserError: the archive was cut short or is none.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    with open(path, "rb") as raw:
        if compression is None:
            yield raw
            return
        try:
            yield io.BufferedReader(_decompressed(raw, compression), _BUFFER_BYTES)
        except (OSError, EOFError, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is not a whole {compression} archive ({why}); fetch or write it again") from error


def _decompressed(raw: Any, compression: str) -> Any:
    if compression == "xz":
        return lzma.LZMAFile(raw)
    import pyarrow as pa

    return pa.CompressedInputStream(raw, compression)  # unlike some of Python's own it notices an archive that was cut short
