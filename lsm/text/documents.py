"""What a reader hands on: one document with its name and where it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is encoded, planned and written as one whole.

    Its text is kept exactly as it was read (only a UTF-8 byte order mark is taken off), so that a corpus can rebuild it.
    """

    doc_id: str
    """Unique among the documents of one corpus and free of absolute paths."""
    text: str
    """The whole text; never empty and never only white space."""
    source: str
    """The file (relative to the input it was found under), recipe or data set that it came from."""
    title: str = ""
    """For people; may be empty."""
