"""`lsm build-index`: a phrase store over a corpus's sentences, and one over their phrases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm.config import CommonOptions

if TYPE_CHECKING:
    from lsm.corpus.reader import Corpus


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Index the sentences of a corpus for retrieval."""

    corpus: Path
    """Folder that encode-corpus wrote."""
    out: Path
    """File of the index; FILE.parquet (texts) and FILE.json (fingerprints) are written beside it."""
    phrases: bool = False
    """Also index the sentences' phrases (3 to 12 words, encoded now) as FILE.phrases, for inversion and guided to stitch with."""
    encoder: str | None = None
    """Where the corpus's encoder lies, when it is not the asset of its name (for --phrases)."""


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
    result = {"index": str(options.out), "n_sentences": len(store), "n_corpus_sentences": corpus.n_sentences, "kind": about["index"]}
    return result | _phrases(options, corpus) if options.phrases else result


def _phrases(options: Options, corpus: Corpus) -> dict[str, Any]:
    from lsm.decode.phrase_store import PhraseStore, phrases_beside
    from lsm.encode.encoder import load_encoder

    encoder = load_encoder(options.encoder or corpus.encoder["name"], device=options.device)
    corpus.require_encoder(encoder.fingerprint())
    store = PhraseStore.phrases_from_corpus(corpus, lambda texts: encoder.encode(texts).vectors, quiet=options.quiet)
    path = phrases_beside(options.out)
    store.save(path)
    print(f"phrase store {path}: {len(store):,} distinct phrases, {path.stat().st_size / 2**20:,.1f} MiB")
    return {"phrases": str(path), "n_phrases": len(store)}
