"""Plain text files (.txt, .md) → documents: one file, one document, unless the file is a whole library."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import PurePath

from lsm.text.compressed import COMPRESSIONS
from lsm.text.decoding import read_text
from lsm.text.documents import Document
from lsm.text.inputs import InputFile

MAX_DOCUMENT_CHARACTERS = 4_000_000
"""A longer text file becomes several documents, so that memory stays bounded; War and Peace has 3.2 million characters."""


def text_documents(file: InputFile, *, max_characters: int = MAX_DOCUMENT_CHARACTERS) -> Iterator[Document]:
    """The document in a text file, named after the file; or, above `max_characters`, documents `name#0000`, `name#0001` …

    The pieces of a long file add up to the whole and end at a blank line, else at a line, a sentence, a space.
    A file that holds nothing but white space gives no document.

    Raises:
        UserError: see `lsm.text.decoding.read_text`.
    """
    title = PurePath(file.name).name.removesuffix(file.path.suffix if file.path.suffix.lower() in COMPRESSIONS else "")
    title = PurePath(title).stem
    pieces = _pieces(file, max_characters)
    first = next(pieces, "")
    second = next(pieces, None)
    if second is None:
        if first and not first.isspace():
            yield Document(file.name, first, file.name, title)
        return
    for number, piece in enumerate(chain((first, second), pieces)):
        yield Document(f"{file.name}#{number:04d}", piece, file.name, f"{title} ({number})")


def _pieces(file: InputFile, max_characters: int) -> Iterator[str]:
    """Cut the file's text into pieces of at most about `max_characters`; a blank piece is joined to the one before it."""
    held = ""
    for piece in _raw_pieces(file, max_characters):
        if held and not piece.isspace() and not held.isspace():
            yield held
            held = piece
        else:
            held += piece
    if held:
        yield held


def _raw_pieces(file: InputFile, max_characters: int) -> Iterator[str]:
    buffer = ""
    for stretch in read_text(file.path):
        buffer += stretch
        while len(buffer) > max_characters and (cut := _cut_point(buffer, max_characters)):
            yield buffer[:cut]
            buffer = buffer[cut:]
    while len(buffer) > max_characters:
        cut = _cut_point(buffer + "\n", max_characters)
        yield buffer[:cut]
        buffer = buffer[cut:]
    if buffer:
        yield buffer


def _cut_point(buffer: str, max_characters: int) -> int:
    """Where to cut at most `max_characters` into `buffer`; 0 = read on, because the line there may turn out too long to accept."""
    lowest = max_characters // 2
    for line_break in ("\n\n", "\n\r\n", "\n"):
        found = buffer.rfind(line_break, lowest, max_characters)
        if found >= 0:
            return found + len(line_break)
    if buffer.find("\n", max_characters) < 0:
        return 0
    for inner_break in (". ", " "):
        found = buffer.rfind(inner_break, lowest, max_characters)
        if found >= 0:
            return found + len(inner_break)
    return max_characters
