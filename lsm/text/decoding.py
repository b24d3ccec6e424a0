"""Bytes → text, or one line that says what a file really is: binary, UTF-16, Latin-1 and how to convert it."""

from __future__ import annotations

import codecs
import shlex
from collections.abc import Iterator
from pathlib import Path

from lsm.errors import UserError
from lsm.text.compressed import opened
from lsm.text.remote import RemoteFile

LINE_LIMIT_BYTES = 64 * 2**20
"""Longest line of a text or JSONL file; anything longer is a file of another kind, or lost its line breaks."""

_CHUNK_BYTES = 2**20
_HEAD_BYTES = 4096
_BOM = "\ufeff"

_MAGIC = (
    (b"%PDF", "a PDF; convert it to text first, for example with pdftotext"),
    (b"PK\x03\x04", "a zip archive (.zip, .docx, .epub …); unpack or convert it to text first"),
    (b"\x1f\x8b", "gzip-compressed; give it its name (.jsonl.gz, .txt.gz) or decompress it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; give it its name (.jsonl.zst, .txt.zst) or decompress it with unzstd"),
    (b"PAR1", "a parquet file; rename it to .parquet"),
    (b"BZh", "bzip2-compressed; give it its name (.jsonl.bz2, .txt.bz2) or decompress it with bunzip2"),
    (b"\xfd7zXZ", "xz-compressed; give it its name (.jsonl.xz, .txt.xz) or decompress it with unxz"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "an SQLite data base; export its text as JSONL first"),
    (b"\x93NUMPY", "a NumPy array; `lsm invert` reads vectors, this verb reads text"),
    (b"{\\rtf", "RTF; convert it to plain text first"),
)


def refuse_other_formats(head: bytes, where: str) -> None:
    """Raise a `UserError` when the first bytes of a file are not those of UTF-8 text; `where` names the file."""
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise UserError(f"{where} is not text but {what}")
    for bom, encoding in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if head.startswith(bom):
            raise UserError(f"{where} is {encoding.upper()}, not UTF-8; convert it: {_iconv(encoding, where)}")
    head = head[:_HEAD_BYTES]
    nul = head.find(0)
    if nul < 0:
        return
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if len(head) >= 8 and max(even, odd) * 5 > len(head) and min(even, odd) * 10 <= max(even, odd):
        encoding = "utf-16le" if odd > even else "utf-16be"
        raise UserError(f"{where} looks like {encoding.upper()} without a byte order mark; convert it: {_iconv(encoding, where)}")
    raise UserError(f"{where} is a binary file (a NUL byte at offset {nul}), not text; give UTF-8 text")


def decode_error(error: UnicodeDecodeError, where: str, offset: int, file: str) -> UserError:
    """The `UserError` for a byte that is not UTF-8, `offset` bytes into `where`."""
    byte = error.object[error.start]
    # 0x80–0x9f are control characters in Latin-1 but quotes and dashes in Windows-1252.
    encoding = "windows-1252" if 0x80 <= byte <= 0x9F else "latin1"
    hint = f"if it is {encoding}, convert it: {_iconv(encoding, file)}"
    return UserError(f"{where} is not UTF-8 (byte 0x{byte:02x} at offset {offset}); {hint}")


def read_text(path: Path | RemoteFile) -> Iterator[str]:
    """Stream a UTF-8 file as stretches of about 1 MiB that add up to it; only a byte order mark is taken off.

    Raises:
        UserError: binary, other encodings, invalid bytes, a line longer than `LINE_LIMIT_BYTES`, unreadable file.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="strict")
    offset = line_bytes = 0
    with opened(path) as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            if offset == 0:
                refuse_other_formats(chunk, str(path))
            if (nul := chunk.find(0)) >= 0:
                raise UserError(f"{path} is a binary file (a NUL byte at offset {offset + nul}), not text; give UTF-8 text")
            line_bytes = _line_bytes(chunk, line_bytes, path)
            text = _decode(decoder, chunk, offset, path, final=False)
            yield text.removeprefix(_BOM) if offset == 0 else text
            offset += len(chunk)
    yield _decode(decoder, b"", offset, path, final=True)


def _line_bytes(chunk: bytes, line_bytes: int, path: Path | RemoteFile) -> int:
    """Bytes of the unfinished line after `chunk`, when `line_bytes` of it came before."""
    first = chunk.find(b"\n")
    if line_bytes + (first if first >= 0 else len(chunk)) > LINE_LIMIT_BYTES:
        limit = LINE_LIMIT_BYTES // 2**20
        raise UserError(f"{path} has a single line of more than {limit} MiB; break it into lines, for example with `fold -s`")
    return len(chunk) - chunk.rfind(b"\n") - 1 if first >= 0 else line_bytes + len(chunk)


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, offset: int, path: Path | RemoteFile, *, final: bool) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        raise decode_error(error, str(path), offset - pending + error.start, str(path)) from error


def _iconv(encoding: str, where: str) -> str:
    return f"iconv -f {encoding} -t utf-8 {shlex.quote(where)} > {shlex.quote(where + '.utf8')}"
