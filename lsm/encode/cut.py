"""Documents → shards, always the same ones; finished shards are recognised by their content and passed over unsegmented."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lsm.corpus import format as layout
from lsm.corpus.standing import NOT_THERE, ShardState, document_hashes
from lsm.corpus.writer import SegmentedDocument, SentenceLike, content_sha256, text_sha256
from lsm.errors import UserError

Segment = Callable[[str], tuple[str, Sequence[SentenceLike]]]
WAY_OUT = "restore the input, choose another --out, or add new documents at the end with --append"


class DocumentLike(Protocol):
    """What is read of a document (`lsm.text.documents.Document` has it)."""

    @property
    def doc_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def title(self) -> str: ...


Entry = tuple[DocumentLike, str, SegmentedDocument | None]
"""A document, its text as it is stored, and what was made of it, once that is known."""


@dataclass(frozen=True)
class CutShard:
    """A shard to encode (`documents`), or one that is finished already (`documents` is None)."""

    index: int
    n_sentences: int
    documents: list[SegmentedDocument] | None


@dataclass
class Cutter:
    """Reads documents and yields the shards of one stage, in order. No document crosses a shard.

    Args:
        corpus: the folder whose finished shards are compared with the input.
        states: what there is of each shard; a damaged one gets the documents that it had, where that is known.
        first_shard: number of the stage's first shard.
        stop_shard: finished stages end here, None while more may be written.
        known: text_sha256 by doc_id of documents in earlier stages; those are passed over.
    """

    corpus: Path
    segment: Segment
    shard_rows: int
    states: Sequence[ShardState] = ()
    first_shard: int = 0
    stop_shard: int | None = None
    known: dict[str, str] = field(default_factory=dict)
    n_blank: int = 0
    n_known: int = 0
    n_mended: int = 0
    reading_seconds: float = 0.0
    segmenting_seconds: float = 0.0

    def shards(self, documents: Iterable[DocumentLike]) -> Iterator[CutShard]:
        """Yield every shard of the stage.

        Raises:
            UserError: the input is not what the finished shards were made from.
        """
        stream = self._fresh(documents)
        carried: Entry | None = None
        index, room = self.first_shard, 0
        while self.stop_shard is None or index < self.stop_shard:
            state = self.states[index] if index < len(self.states) else NOT_THERE
            if state.done is not None:
                for pair in finished_documents(self.corpus, index):
                    found, carried = carried or self._next(stream), None
                    self._require_same(index, pair, found)
                yield CutShard(index, state.done["n_sentences"], None)
                room = self.shard_rows - state.done["n_sentences"]
            elif state.documents is not None:
                held = []
                for pair in state.documents:
                    found, carried = carried or self._next(stream), None
                    held.append(self._segmented(self._require_same(index, pair, found)))
                n_sentences = sum(len(document.sentences) for document in held)
                yield CutShard(index, n_sentences, held)
                room = self.shard_rows - n_sentences
            else:
                filled: list[SegmentedDocument] = []
                rows = 0
                while (entry := carried or self._next(stream)) is not None:
                    document = self._segmented(entry)
                    if not filled and len(document.sentences) <= room:
                        raise UserError(
                            f"{self._differs_from(index - 1)}: that ended before document {document.doc_id!r}; restore the input and run "
                            "the same command, then add what is new with --append; or choose another --out"
                        )
                    if filled and rows + len(document.sentences) > self.shard_rows:
                        carried = (entry[0], entry[1], document)
                        break
                    carried = None
                    filled.append(document)
                    rows += len(document.sentences)
                there = (state.entry or {}).get("content_sha256")
                if there and content_sha256((one.doc_id, one.text_sha256) for one in filled) != there:
                    raise UserError(f"{self._differs_from(index)}; {WAY_OUT}")
                if not filled:
                    return
                yield CutShard(index, rows, filled)
                room = 0
            index += 1
        extra = carried or self._next(stream)
        if extra is not None:
            raise UserError(
                f"{self.corpus} is finished, but the input has further documents (first: {extra[0].doc_id!r}); "
                "give --append to add them, or choose another --out"
            )

    def counts(self) -> dict[str, int]:
        """Documents of the input that were passed over or mended, so far."""
        return {"n_blank_documents": self.n_blank, "n_documents_present_before": self.n_known, "n_documents_mended": self.n_mended}

    def _fresh(self, documents: Iterable[DocumentLike]) -> Iterator[tuple[DocumentLike, str]]:
        source = iter(documents)
        while True:
            start = time.perf_counter()
            document = next(source, None)
            self.reading_seconds += time.perf_counter() - start
            if document is None:
                return
            if not document.text.strip():
                self.n_blank += 1
                continue
            text = storable(document.text)
            self.n_mended += text is not document.text
            if document.doc_id in self.known:
                if self.known[document.doc_id] != text_sha256(text):
                    raise UserError(
                        f"document {document.doc_id!r} is in {self.corpus} already, with other text "
                        f"({self.known[document.doc_id][:16]} there, {text_sha256(text)[:16]} now); "
                        "give it another id or choose another --out"
                    )
                self.n_known += 1
                continue
            yield document, text

    def _next(self, stream: Iterator[tuple[DocumentLike, str]]) -> Entry | None:
        found = next(stream, None)
        return None if found is None else (*found, None)

    def _segmented(self, entry: Entry) -> SegmentedDocument:
        document, text, segmented = entry
        if segmented is not None:
            return segmented
        start = time.perf_counter()
        lead, sentences = self.segment(text)
        self.segmenting_seconds += time.perf_counter() - start
        return SegmentedDocument(document.doc_id, document.source, document.title, text_sha256(text), len(text), lead, sentences)

    def _require_same(self, index: int, expected: tuple[str, str], found: Entry | None) -> Entry:
        place = self._differs_from(index)
        if found is None:
            raise UserError(f"{place}: it ends before document {expected[0]!r}; {WAY_OUT}")
        actual = (found[0].doc_id, text_sha256(found[1]))
        if actual != expected:
            raise UserError(f"{place}: {expected[0]!r} [{expected[1][:16]}] there, {actual[0]!r} [{actual[1][:16]}] now; {WAY_OUT}")
        return found

    def _differs_from(self, index: int) -> str:
        return f"the input differs from what shard {layout.shard_name(index)} of {self.corpus} was made from"


def finished_documents(corpus: Path, index: int) -> list[tuple[str, str]]:
    """(doc_id, text_sha256) of a finished shard's documents."""
    path = layout.shard_folder(corpus, index) / layout.DOCUMENTS
    try:
        return document_hashes(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or missing; run the same command again") from error


def storable(text: str) -> str:
    """`text` itself, or with lone surrogates (broken JSON escapes) replaced by U+FFFD, since UTF-8 cannot hold them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
