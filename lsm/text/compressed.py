"""Files as they are or compressed (.gz .zst .bz2 .xz) → bytes, a stretch at a time."""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsm.errors import UserError
from lsm.text.remote import RemoteFile

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""By the last ending of a file's name."""
_BUFFER_BYTES = 2**20


class _XzStreams(io.RawIOBase):
    """The streams of an .xz archive one after the other, padding between them passed over.

    `lzma.LZMAFile` takes a second stream whose header is damaged for rubbish, and refuses padding.
    """

    def __init__(self, raw: Any) -> None:
        self._raw, self._stream = raw, lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self._stream.eof:
                rest = self._stream.unused_data.lstrip(b"\0")
                while not rest:
                    piece = self._raw.read(_BUFFER_BYTES)
                    if not piece:
                        return 0
                    rest = piece.lstrip(b"\0")
                self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            else:
                rest = self._raw.read(_BUFFER_BYTES) if self._stream.needs_input else b""
                if self._stream.needs_input and not rest:
                    raise EOFError("it ends in the middle of a stream")
            data = self._stream.decompress(rest, len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def opened(path: Path | RemoteFile) -> Iterator[Any]:
    """A buffered binary stream of what the file holds, decompressed on the way; archives of several frames are read to their end.

    Raises:
        UserError: the archive was cut short or is none.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    with path.open("rb") as raw:
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
        return _XzStreams(raw)
    import pyarrow as pa

    return pa.CompressedInputStream(raw, compression)  # unlike some of Python's own it notices an archive that was cut short
