"""`lsm build-index`: a phrase store over a corpus's sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsm.config import CommonOptions


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Index the sentences of a corpus for retrieval."""

    corpus: Path
    """Folder that encode-corpus wrote."""
    out: Path
    """File of the index; FILE.parquet (texts) and FILE.json (fingerprints) are written beside it."""


def run(options: Options) -> dict[str, Any]:
    """Build, save, and print what the store holds."""
    from lsm.corpus.reader import Corpus
    from lsm.decode.phrase_store import FLAT_UP_TO, PhraseStore
    from lsm.errors import UserError
    from lsm.progress import say

    if options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder; give the name of a file in it")
    corpus = Corpus.open(options.corpus)
    kind = "exact search" if corpus.n_sentences <= FLAT_UP_TO else "approximate search (inverted file)"
    say(f"indexing {corpus.n_sentences:,} sentences of {options.corpus}, {corpus.dim} dims, {kind}", quiet=options.quiet)
    store = PhraseStore.from_corpus(corpus, quiet=options.quiet)
    about = store.save(options.out)
    mebibytes = options.out.stat().st_size / 2**20
    print(f"phrase store {options.out}: {len(store):,} distinct sentences of {corpus.n_sentences:,}, {mebibytes:,.1f} MiB")
    return {"index": str(options.out), "n_sentences": len(store), "n_corpus_sentences": corpus.n_sentences, "kind": about["index"]}
