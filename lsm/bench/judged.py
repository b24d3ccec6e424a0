"""Which documents a run may be judged on: none that it was trained on, in whatever corpus and under whatever id they come.

Letters: S sentences of a document, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import split_documents
from lsm.errors import UserError
from lsm.files import read_json
from lsm.latent.saved import meant
from lsm.latent.space import Part, SpaceDocuments, require_space
from lsm.latent.trained_on import read_trained_on, text_key
from lsm.latent.transformer import LatentTransformer


@dataclass(frozen=True)
class Documents:
    """Documents of a corpus, by number, as the scorer takes them."""

    corpus: Corpus
    numbers: Sequence[int]
    space: Sequence[Part] = ()
    """The parts that vectors are made of; empty = semantic vectors."""

    def vectors(self) -> list[np.ndarray]:
        """Vectors of each, float16 [S, D]; memory-mapped where they are semantic ones alone."""
        source = SpaceDocuments(self.corpus, self.space) if self.space else self.corpus
        return [source.vectors(int(doc)) for doc in self.numbers]

    def parts(self) -> list[np.ndarray]:
        """`part` of each sentence of each, [S]."""
        return self._column("part")

    def sections(self) -> list[np.ndarray]:
        """Section number of each sentence of each, [S]."""
        return self._column("section")

    def _column(self, name: str) -> list[np.ndarray]:
        values = self.corpus.column(name)
        spans = (self.corpus.rows(int(doc)) for doc in self.numbers)
        return [np.array(values[start:stop]) for start, stop in spans]


@dataclass(frozen=True)
class Judged:
    """What a run is judged on, and what its controls may learn from."""

    held_out: Documents
    train: Documents | None
    notes: list[str]


def choose_documents(run: Path, model: LatentTransformer, corpus: Corpus, train_corpus: Corpus | None, *, limit: int | None) -> Judged:
    """The documents of `corpus` that the run was not trained on, and those that its controls may learn from.

    When `corpus` is the very one of the run's training, its held-out documents are judged; of any other (grown since, or made apart) every
    document is whose text is neither among those trained on nor among those that the controls learn from.

    Raises:
        UserError: a corpus of another encoder or without the parts that the model reads, or nothing left to judge on.
    """
    for opened in filter(None, (corpus, train_corpus)):
        opened.require_encoder(model.config.encoder)
        require_space(opened, model.config.parts, model.config.residual)
    record, trained_on = _run_record(meant(run)), read_trained_on(meant(run))
    made_of, fraction = record.get("inputs", {}).get("corpus"), record.get("settings", {}).get("data", {}).get("held_out_fraction")
    notes = []
    numbers = list(range(corpus.n_documents))
    if fraction is not None and made_of == corpus.fingerprint:
        numbers = split_documents(corpus.doc_ids, fraction)[1].tolist()
        notes.append(f"{corpus.path} is the training corpus: its {len(numbers)} held-out documents are judged")
    elif trained_on is None:
        believed = "those of --train-corpus are taken for them" if train_corpus else "some of those judged may be among them"
        notes.append(f"{run} does not say which documents it was trained on: {believed}")
    source = train_corpus or corpus
    keys = _keys(source)
    if fraction is not None and made_of == source.fingerprint:
        fitting = split_documents(source.doc_ids, fraction)[0].tolist()
    else:
        fitting = [doc for doc, key in enumerate(keys) if key in (trained_on or ())]
    if train_corpus is not None and not fitting:
        fitting = list(range(train_corpus.n_documents))
    seen = (trained_on or set()) | {keys[doc] for doc in fitting}
    judged_keys = _keys(corpus)
    unseen = [doc for doc in numbers if judged_keys[doc] not in seen]
    if len(unseen) < len(numbers):
        notes.append(f"{len(numbers) - len(unseen)} documents of {corpus.path} are among the training documents and left out")
    if not fitting:
        notes.append("no --train-corpus: controls that must be fitted (corpus mean, ridge, choice of decay) are left out")
    if not unseen:
        raise UserError(f"--corpus {corpus.path} holds no document that the run has not seen; encode others with lsm encode-corpus")
    space = model.config.parts
    return Judged(Documents(corpus, unseen[:limit], space), Documents(source, fitting, space) if fitting else None, notes)


def _run_record(run: Path) -> dict[str, Any]:
    """`run.json` of the run that `run` is, or whose `final/` it is; empty for a model folder from elsewhere."""
    for folder in (run, run.resolve().parent):
        if (folder / "run.json").exists():
            return read_json(folder / "run.json")
    return {}


def _keys(corpus: Corpus) -> list[str]:
    """`text_key` of every document."""
    return [text_key(sha256) for sha256 in corpus.document_column("text_sha256").to_pylist()]
