"""`lsm build-index`: a phrase store over a corpus's sentences, and one over their phrases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lsm.config import CommonOptions

if TYPE_CHECKING:
    from lsm.corpus.reader import Corpus
    from lsm.decode.phrase_build import Built


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Index the sentences of a corpus for retrieval."""

    corpus: Path
    """Folder that encode-corpus wrote."""
    out: Path
    """File of the index; FILE.parquet (texts), FILE.json (fingerprints) and, unless exact, FILE.vectors.npy are written beside it."""
    index: Literal["auto", "flat", "hnsw", "ivf-pq"] = "auto"
    """Kind of index; flat is exact, the others rank the candidates they find by exact cosine. auto goes by the number of sentences."""
    phrases: bool = False
    """Also index the sentences' phrases (3 to 12 words, encoded now) as FILE.phrases, for inversion and guided to stitch with."""
    encoder: str | None = None
    """Where the corpus's encoder lies, when it is not the asset of its name (for --phrases)."""


def run(options: Options) -> dict[str, Any]:
    """Build, save, measure, and print what the store holds."""
    from lsm.corpus.reader import Corpus
    from lsm.decode.pieces import Pieces
    from lsm.errors import UserError
    from lsm.progress import say

    if options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder; give the name of a file in it")
    corpus = Corpus.open(options.corpus)
    say(f"reading {corpus.n_sentences:,} sentences of {options.corpus}, {corpus.dim} dims", quiet=options.quiet)
    built = _build(options, Pieces(corpus, quiet=options.quiet), options.out)
    n = built.about["n_sentences"]
    print(f"phrase store {options.out}: {n:,} distinct sentences of {corpus.n_sentences:,}, {_sizes(built)}\n  {built.measured.line()}")
    result = {"index": str(options.out), "n_sentences": n, "n_corpus_sentences": corpus.n_sentences, "kind": built.about["index"]}
    result |= _figures(built)
    return result | _phrases(options, corpus) if options.phrases else result


def _build(options: Options, pieces: Any, path: Path, encode: Any = None) -> Built:
    from lsm.decode.index_kinds import gpu_copies
    from lsm.decode.phrase_build import build_store
    from lsm.decode.recall import WANTED
    from lsm.progress import say

    stand_in, where = gpu_copies(options.device)
    say(f"the index is built {where}", quiet=options.quiet)
    built = build_store(
        pieces, path, wanted=options.index, encode=encode, stand_in=stand_in, seed=options.seed, quiet=options.quiet
    )  # fmt: skip
    if (recall := built.measured.least_recall) < WANTED:
        say(f"warning: {path} finds {recall:.3f} of the ten nearest, less than {WANTED}; for exact search: --index flat")
    return built


def _phrases(options: Options, corpus: Corpus) -> dict[str, Any]:
    from lsm.decode.phrase_store import phrases_beside
    from lsm.decode.pieces import Pieces
    from lsm.encode.encoder import load_encoder

    encoder = load_encoder(options.encoder or corpus.encoder["name"], device=options.device)
    corpus.require_encoder(encoder.fingerprint())
    path = phrases_beside(options.out)
    pieces = Pieces(corpus, phrases=True, quiet=options.quiet)
    built = _build(options, pieces, path, lambda texts: encoder.encode(texts).vectors)
    n = built.about["n_sentences"]
    print(f"phrase store {path}: {n:,} distinct phrases, {_sizes(built)}\n  {built.measured.line()}")
    return {"phrases": str(path), "n_phrases": n, "phrases_index": _figures(built)}


def _sizes(built: Built) -> str:
    mebibytes = {part: size / 2**20 for part, size in built.about["bytes"].items()}
    more = f" and {mebibytes['.vectors.npy']:,.1f} MiB of vectors" if ".vectors.npy" in mebibytes else ""
    return f"{built.choice.kind}, {mebibytes['index']:,.1f} MiB{more}"


def _figures(built: Built) -> dict[str, Any]:
    return {
        "index_kind": built.choice.kind,
        "reason": built.choice.reason,
        "bytes": built.about["bytes"],
        "effort": built.about.get("effort"),
        "measured": built.measured.to_dict(),
    }
