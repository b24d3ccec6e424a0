"""Rows → documents: JSONL (plain or compressed), parquet, and any other stream of dictionaries with `text` or chat `messages`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsm.errors import UserError
from lsm.text.compressed import opened
from lsm.text.decoding import LINE_LIMIT_BYTES, decode_error, refuse_other_formats
from lsm.text.documents import Document
from lsm.text.inputs import InputFile
from lsm.text.remote import RemoteFile

_BATCH_ROWS = 64
_HEAD_BYTES = 4096
_PARQUET_BUFFER_BYTES = 4 * 2**20
"""Of a remote file, held for each column: row groups can be larger than memory."""


@dataclass(frozen=True, kw_only=True)
class RowFields:
    """The names under which a row keeps its parts."""

    text: str = "text"
    """The text; when a row has none, `messages` is rendered instead."""
    messages: str = "messages"
    """Chat messages: a list of {role, content}."""
    id: str = "id"
    """Becomes the document's name; the row's number stands in for it."""
    title: str = "title"
    """Optional."""


def jsonl_documents(file: InputFile, fields: RowFields) -> Iterator[Document | None]:
    """One document for each row of a JSONL file, None for a row with an empty text; blank lines do not count.

    Raises:
        UserError: naming file and line: broken JSON, a row without text, a line above `LINE_LIMIT_BYTES`, bad encoding, damaged archive.
    """
    for number, (where, row) in enumerate(json_rows(file.path)):
        yield row_document(row, fields, where=where, fallback_id=f"{file.name}#{number}", source=file.name)


def json_rows(path: Path | RemoteFile) -> Iterator[tuple[str, Any]]:
    """Place (`FILE:LINE`) and value of each line of a JSONL file, blank ones left out; errors as of `jsonl_documents`."""
    for line_number, line in _lines(path):
        where = f"{path}:{line_number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise decode_error(error, where, error.start, str(path)) from error
        text = text.removeprefix("\ufeff") if line_number == 1 else text
        if not text or text.isspace():
            continue
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            problem = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise UserError(f"{where} is not a JSON row ({problem}); mend or delete that line") from error
        yield where, row


def parquet_documents(file: InputFile, fields: RowFields) -> Iterator[Document | None]:
    """One document for each row of a parquet file, None for a row with an empty text; read by batches of rows.

    Raises:
        UserError: not parquet, or no column for the text (the columns are listed).
    """
    import pyarrow as pa

    try:
        with _parquet(file.path) as parquet:
            names = parquet.schema_arrow.names
            wanted = [name for name in (fields.text, fields.messages, fields.id, fields.title) if name in names]
            if fields.text not in names and fields.messages not in names:
                raise UserError(
                    f"{file.path} has no column {fields.text!r} or {fields.messages!r}; its columns are {', '.join(names)}; rename one"
                )
            number = 0
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    where = f"{file.path}, row {number}"
                    yield row_document(row, fields, where=where, fallback_id=f"{file.name}#{number}", source=file.name)
                    number += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{file.path} is not a whole parquet file ({_one_line(error)}); fetch or write it again") from error


@contextmanager
def _parquet(path: Path | RemoteFile) -> Iterator[Any]:
    import pyarrow.parquet as pq

    if isinstance(path, RemoteFile):
        with path.open_for_seeking() as handle, pq.ParquetFile(handle, buffer_size=_PARQUET_BUFFER_BYTES) as parquet:
            yield parquet
    else:
        with pq.ParquetFile(path) as parquet:
            yield parquet


def row_document(row: Any, fields: RowFields, *, where: str, fallback_id: str, source: str) -> Document | None:
    """The document in one row; None when its text is empty. `where` names the row in errors."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is a {type(row).__name__}, not an object with {fields.text!r} or {fields.messages!r}")
    if row.get(fields.text) is None and row.get(fields.messages) is not None:
        text = _render_messages(row[fields.messages], where)
    elif fields.text in row or fields.messages in row:
        text = row.get(fields.text)
    else:
        keys = ", ".join(map(str, row)) or "none"
        raise UserError(f"{where} has no {fields.text!r} and no {fields.messages!r} (its keys: {keys}); rename the key that holds the text")
    if text is None:
        return None
    if not isinstance(text, str):
        raise UserError(f"{where}: {fields.text!r} is a {type(text).__name__}, not a string")
    if not text or text.isspace():
        return None
    identity = row.get(fields.id)
    doc_id = fallback_id if identity is None or identity == "" else str(identity)
    title = row.get(fields.title)
    title = title if isinstance(title, str) else ""
    if not (text.isascii() and doc_id.isascii() and title.isascii()):
        try:
            (text + doc_id + title).encode("utf-8")
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start]).strip("'")
            raise UserError(f"{where} holds half a character ({half}), which is no Unicode text; mend or delete that row") from error
    return Document(doc_id, text, source, title)


def _render_messages(messages: Any, where: str) -> str:
    """A conversation as paragraphs `role: content`."""
    paragraphs = []
    for message in messages if isinstance(messages, list) else [messages]:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list):
            content = "\n".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
        if not isinstance(message, Mapping) or not isinstance(content, str | None) or "role" not in message:
            raise UserError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
        if content:
            paragraphs.append(f"{message['role']}: {content}")
    return "\n\n".join(paragraphs)


def _lines(path: Path | RemoteFile) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line, decompressed on the way."""
    with opened(path) as stream:
        number = 0
        refuse_other_formats(stream.peek(_HEAD_BYTES), str(path))
        while line := stream.readline(LINE_LIMIT_BYTES + 1):
            number += 1
            if len(line) > LINE_LIMIT_BYTES:
                limit = LINE_LIMIT_BYTES // 2**20
                raise UserError(f"{path}:{number} is longer than {limit} MiB; JSONL wants one row a line, so split that document")
            yield number, line


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
