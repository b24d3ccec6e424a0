"""Which documents of a corpus go on: filtered, without repetitions, without what other corpora hold.

Shape letters: G documents.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np

from lsm.corpus.reader import Corpus
from lsm.errors import UserError

Advance = Callable[[int], None]
_FEWEST_CHARACTERS = 16


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """What a document has to be like; None asks nothing."""

    min_sentences: int | None = None
    max_sentences: int | None = None
    source: str | None = None
    """Glob over the names of the files that documents came from."""
    doc_ids: frozenset[str] | None = None
    max_truncated: float | None = None
    """Largest share of sentences that the encoder cut."""

    def keep(self, corpus: Corpus) -> np.ndarray:
        """bool [n_documents].

        Raises:
            UserError: a document that was asked for by its id is not there.
        """
        n_sentences_G = np.diff(corpus.starts)
        keep_G = np.ones(corpus.n_documents, dtype=bool)
        if self.min_sentences is not None:
            keep_G &= n_sentences_G >= self.min_sentences
        if self.max_sentences is not None:
            keep_G &= n_sentences_G <= self.max_sentences
        if self.source is not None:
            pattern = self.source
            keep_G &= np.array([fnmatch(source or "", pattern) for source in corpus.document_column("source").to_pylist()], dtype=bool)
        if self.doc_ids is not None:
            if missing := self.doc_ids - set(corpus.doc_ids):
                raise UserError(f"corpus {corpus.path} has no document {min(missing)!r} ({len(missing)} of the ids are not there)")
            keep_G &= np.array([doc_id in self.doc_ids for doc_id in corpus.doc_ids], dtype=bool)
        if self.max_truncated is not None:
            document_S = np.repeat(np.arange(corpus.n_documents), n_sentences_G)
            cut_G = np.bincount(document_S, weights=corpus.column("truncated"), minlength=corpus.n_documents)
            keep_G &= cut_G <= self.max_truncated * n_sentences_G + 1e-9
        return keep_G


def first_of_each_id(corpora: Sequence[Corpus]) -> tuple[list[np.ndarray], int]:
    """Of documents that several corpora hold under one id, the first.

    Returns:
        bool [n_documents] of each corpus, and how many are left out.

    Raises:
        UserError: one id with two texts.
    """
    known: dict[str, tuple[str, Corpus]] = {}
    keeps = []
    for corpus in corpora:
        keep_G = np.ones(corpus.n_documents, dtype=bool)
        for number, (doc_id, sha256) in enumerate(zip(corpus.doc_ids, corpus.document_column("text_sha256").to_pylist(), strict=True)):
            text, owner = known.setdefault(doc_id, (sha256, corpus))
            if text != sha256:
                raise UserError(
                    f"document {doc_id!r} has other text in {corpus.path} [{sha256[:16]}] than in {owner.path} [{text[:16]}]; "
                    "encode one of them from files of other names, or keep the others of its documents: lsm corpus filter --ids FILE"
                )
            keep_G[number] = owner is corpus
        keeps.append(keep_G)
    return keeps, sum(int((~keep_G).sum()) for keep_G in keeps)


def without_repetitions(
    corpus: Corpus, overlap: float, *, unlike: Sequence[Corpus] = (), within: bool = True, advance: Advance = lambda n: None
) -> np.ndarray:
    """Documents of which less than the share `overlap` of the sentences stands in what was read before.

    Sentences are compared by their letters, marks and digits (NFKC, whatever the case); those with fewer than sixteen do not count, and a
    sentence that a document repeats itself counts as new there. A document whose whole text was read before is left out in any case. The
    hashes of all sentences are held in memory, about 100 bytes each.

    Args:
        overlap: 1.0 leaves out documents of which every counting sentence was read before.
        unlike: corpora whose sentences count as read (held-out text, a benchmark).
        within: whether documents of `corpus` that are kept count as read too.
        advance: called with the number of sentences of each document.

    Returns:
        bool [n_documents].

    Raises:
        UserError: a corpus that keeps residual codes and no text.
    """
    for read in (corpus, *unlike):
        if not read.keeps_text:
            raise UserError(f"corpus {read.path} keeps no text to compare; encode it without --drop-text")
    seen: set[bytes] = set()
    texts: set[str] = set()
    for other in unlike:
        texts |= set(other.document_column("text_sha256").to_pylist())
        for _, hashes in _hashed(other):
            seen |= hashes
    keep_G, sha256_G = np.ones(corpus.n_documents, dtype=bool), corpus.document_column("text_sha256")
    for number, hashes in _hashed(corpus):
        sha256 = sha256_G[number].as_py()
        repeated = len(hashes & seen) / len(hashes) if hashes else 0.0
        keep_G[number] = not (repeated >= overlap or sha256 in texts)
        if within and keep_G[number]:
            texts.add(sha256)
            seen |= hashes
        start, stop = corpus.rows(number)
        advance(stop - start)
    return keep_G


def _hashed(corpus: Corpus) -> Iterator[tuple[int, set[bytes]]]:
    """Each document's number and the hashes of its sentences that are long enough to be compared."""
    for number in range(corpus.n_documents):
        bare = (_bare(text) for text in corpus.texts(number))
        yield number, {hashlib.blake2b(text.encode(), digest_size=8).digest() for text in bare if len(text) >= _FEWEST_CHARACTERS}


def _bare(text: str) -> str:
    """What is compared of a sentence."""
    return "".join(mark for mark in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(mark)[0] in "LMN")
