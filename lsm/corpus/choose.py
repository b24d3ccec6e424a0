"""Which documents of a corpus go on: filtered, without repetitions, without what other corpora hold.

Shape letters: G documents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np

from lsm.corpus.reader import Corpus
from lsm.errors import UserError

Advance = Callable[[int], None]
_WORD = re.compile(r"[^\W_]+")
_FEWEST_WORDS = 4


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
        n_sentences_G = corpus.documents["n_sentences"].to_numpy()
        keep_G = np.ones(corpus.n_documents, dtype=bool)
        if self.min_sentences is not None:
            keep_G &= n_sentences_G >= self.min_sentences
        if self.max_sentences is not None:
            keep_G &= n_sentences_G <= self.max_sentences
        if self.source is not None:
            pattern = self.source
            keep_G &= np.array([fnmatch(source or "", pattern) for source in corpus.documents["source"].to_pylist()], dtype=bool)
        if self.doc_ids is not None:
            if missing := self.doc_ids - set(corpus.doc_ids):
                raise UserError(f"corpus {corpus.path} has no document {min(missing)!r} ({len(missing)} of the ids are not there)")
            keep_G &= np.array([doc_id in self.doc_ids for doc_id in corpus.doc_ids], dtype=bool)
        if self.max_truncated is not None:
            document_S = np.repeat(np.arange(corpus.n_documents), n_sentences_G)
            cut_G = np.bincount(document_S, weights=corpus.column("truncated"), minlength=corpus.n_documents)
            keep_G &= cut_G <= self.max_truncated * n_sentences_G
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
        for number, (doc_id, sha256) in enumerate(zip(corpus.doc_ids, corpus.documents["text_sha256"].to_pylist(), strict=True)):
            text, owner = known.setdefault(doc_id, (sha256, corpus))
            if text != sha256:
                raise UserError(
                    f"document {doc_id!r} has other text in {corpus.path} [{sha256[:16]}] than in {owner.path} [{text[:16]}]; "
                    "leave it out of one of them: lsm corpus filter"
                )
            keep_G[number] = owner is corpus
        keeps.append(keep_G)
    return keeps, sum(int((~keep_G).sum()) for keep_G in keeps)


def without_repetitions(
    corpus: Corpus, overlap: float, *, unlike: Sequence[Corpus] = (), within: bool = True, advance: Advance = lambda n: None
) -> np.ndarray:
    """Documents of which less than the share `overlap` of the sentences stands in what was read before.

    Sentences are compared by letters and digits; those with fewer than four words do not count, and a sentence that a document repeats
    itself counts as new there. The hashes of all sentences are held in memory, about 100 bytes each.

    Args:
        overlap: 1.0 leaves out documents of which every counting sentence was read before.
        unlike: corpora whose sentences count as read (held-out text, a benchmark).
        within: whether documents of `corpus` that are kept count as read too.
        advance: called with the number of sentences of each document.

    Returns:
        bool [n_documents].
    """
    seen: set[bytes] = set()
    for other in unlike:
        for _, hashes in _hashed(other):
            seen |= hashes
    keep_G = np.ones(corpus.n_documents, dtype=bool)
    texts = set()
    for number, hashes in _hashed(corpus):
        sha256 = corpus.documents["text_sha256"][number].as_py()
        repeated = len(hashes & seen) / len(hashes) if hashes else 0.0
        keep_G[number] = not (repeated >= overlap or (within and sha256 in texts))
        if within and keep_G[number]:
            texts.add(sha256)
            seen |= hashes
        start, stop = corpus.rows(number)
        advance(stop - start)
    return keep_G


def _hashed(corpus: Corpus) -> Iterator[tuple[int, set[bytes]]]:
    """Each document's number and the hashes of its sentences of four words or more."""
    for number in range(corpus.n_documents):
        words = (_WORD.findall(text.casefold()) for text in corpus.texts(number))
        yield number, {hashlib.blake2b(" ".join(some).encode(), digest_size=8).digest() for some in words if len(some) >= _FEWEST_WORDS}
