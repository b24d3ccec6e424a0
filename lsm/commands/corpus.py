"""`lsm corpus merge|split|filter|dedup|convert|push|pull`: corpora from corpora, without encoding anything again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from lsm.config import CommonOptions
from lsm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from lsm.corpus.reader import Corpus


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Make corpora of corpora, or other files of one, or exchange them with the Hugging Face hub."""

    action: tyro.conf.Positional[Literal["merge", "split", "filter", "dedup", "convert", "push", "pull"]]
    """merge: several as one; split: held-out documents apart; filter: documents that are as asked; dedup: without documents that repeat
    others; convert: parquet files with a column of vectors, or with --vectors int8 a corpus of half the size;
    push CORPUS REPOSITORY: to a dataset repository of the Hugging Face hub, with a data card; pull REPOSITORY FOLDER: from one."""
    corpora: tyro.conf.Positional[tuple[Path, ...]]
    """Corpus folders; one, but for merge. push, pull: corpus folder and repository (owner/name), in the order of the way."""
    out: Path | None = None
    """Folder to write (not for push and pull); split writes train/ and held-out/ into it. The same command goes on after a stop (convert
    to parquet begins again)."""
    held_out_fraction: float = 0.1
    """split: share of documents that is held out, chosen by a hash of their ids, not the one that lsm pretrain uses."""
    min_sentences: int | None = None
    """filter: shortest document."""
    max_sentences: int | None = None
    """filter: longest document."""
    max_truncated: float | None = None
    """filter: largest share of sentences that the encoder had to cut."""
    source: str | None = None
    """filter: glob over the names of the files that documents came from."""
    ids: Path | None = None
    """filter: file with one document id a line."""
    unlike: tuple[Path, ...] = ()
    """filter, dedup: leave out documents that share their sentences with these corpora (a held-out set, a benchmark)."""
    overlap: float = 0.5
    """filter --unlike, dedup: a document is left out when this share of its sentences (of sixteen letters or more) stands elsewhere."""
    vectors: Literal["float32", "float16", "int8"] = "float32"
    """convert: float32 or float16 writes parquet with vectors of that precision; int8 writes a corpus that every verb reads, whose semantic
    vectors take a byte a number and one scale a row (cosine to float16 of MiniLM vectors: 0.9999)."""
    licence: str = "unknown"
    """push: licence of the texts, for the data card: an identifier of the hub (cc-by-4.0) or words."""
    private: bool = False
    """push: make the repository private, where it is made now."""
    revision: str | None = None
    """push: branch to write (default main); pull: branch, tag or commit to read, kept for later calls."""


SPLIT_SALT = "lsm corpus split "
_OF_ACTION = {
    "split": ("held_out_fraction",),
    "filter": ("min_sentences", "max_sentences", "max_truncated", "source", "ids", "unlike", "overlap"),
    "dedup": ("unlike", "overlap"),
    "convert": ("vectors",),
    "merge": (),
    "push": ("licence", "private", "revision"),
    "pull": ("revision",),
}


def run(options: Options) -> dict[str, Any]:
    """Do what is asked, print what came of it, and return the counts."""
    from lsm.corpus.reader import Corpus

    _check(options)
    if options.action in ("push", "pull"):
        from lsm.commands.corpus_hub import pull_corpus, push_corpus

        return push_corpus(options) if options.action == "push" else pull_corpus(options)
    out = options.out
    assert out is not None
    corpora = [Corpus.open(path) for path in options.corpora]
    if options.action == "convert":
        return _to_int8(options, corpora[0], out) if options.vectors == "int8" else _convert(options, corpora[0], out, options.vectors)
    if options.action == "split":
        return _split(options, corpora[0], out)
    if options.action == "merge":
        from lsm.corpus.choose import first_of_each_id

        keeps, n_twice = first_of_each_id(corpora)
        return _derive(options, corpora, keeps, out) | {"n_in_several": n_twice}
    return _derive(options, corpora, [_kept(options, corpora[0])], out)


def _check(options: Options) -> None:
    if options.action in ("push", "pull"):
        if len(options.corpora) != 2 or options.out is not None:
            ways = {"push": "CORPUS OWNER/NAME", "pull": "OWNER/NAME FOLDER"}
            raise UserError(f"write: lsm corpus {options.action} {ways[options.action]}")
    elif options.out is None:
        raise UserError(f"lsm corpus {options.action}: --out is missing; give the folder to write")
    if not options.corpora:
        raise UserError(f"lsm corpus {options.action}: name a corpus folder")
    if len(options.corpora) > 1 and options.action not in ("merge", "push", "pull"):
        raise UserError(f"lsm corpus {options.action} takes one corpus; put several together first: lsm corpus merge")
    foreign = {name for names in _OF_ACTION.values() for name in names} - set(_OF_ACTION[options.action])
    if given := sorted(name for name in foreign if getattr(options, name) != getattr(Options, name)):
        raise UserError(f"--{given[0].replace('_', '-')} is no option of lsm corpus {options.action}; leave it out")
    for name, value in (("--held-out-fraction", options.held_out_fraction), ("--overlap", options.overlap)):
        if not 0 < value <= 1 or (name == "--held-out-fraction" and value == 1):
            raise UserError(f"{name} {value}: must be between 0 and 1")
    if options.action == "filter" and not options.unlike and options.overlap != Options.overlap:
        raise UserError("--overlap goes with --unlike; give that too, or leave it out")
    if options.max_truncated is not None and not 0 <= options.max_truncated <= 1:
        raise UserError(f"--max-truncated {options.max_truncated}: must be between 0 and 1")
    if options.action == "filter" and not any(getattr(options, name) not in (None, ()) for name in _OF_ACTION["filter"][:-1]):
        raise UserError(
            "lsm corpus filter: ask for something: --min-sentences, --max-sentences, --max-truncated, --source, --ids or --unlike"
        )


def _kept(options: Options, corpus: Corpus) -> np.ndarray:
    """Which documents filter or dedup keeps."""
    from lsm.corpus.choose import Criteria, without_repetitions
    from lsm.corpus.reader import Corpus
    from lsm.progress import Progress

    keep_G = Criteria(
        min_sentences=options.min_sentences,
        max_sentences=options.max_sentences,
        source=options.source,
        doc_ids=_ids(options.ids) if options.ids else None,
        max_truncated=options.max_truncated,
    ).keep(corpus)
    if options.action == "dedup" or options.unlike:
        others = [Corpus.open(path) for path in options.unlike]
        with Progress("comparing sentences", corpus.n_sentences, "sentences", quiet=options.quiet) as progress:
            keep_G &= without_repetitions(
                corpus, options.overlap, unlike=others, within=options.action == "dedup", advance=progress.advance
            )
    return keep_G


def _ids(path: Path) -> frozenset[str]:
    try:
        ids = frozenset(line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--ids {path}: cannot be read as UTF-8 text ({type(error).__name__}); give a file with one document id a line"
        ) from error
    if not ids:
        raise UserError(f"--ids {path} is empty; give a file with one document id a line")
    return ids


def _split(options: Options, corpus: Corpus, out: Path) -> dict[str, Any]:
    import numpy as np

    from lsm.corpus.sampler import split_documents

    if corpus.n_documents < 2:
        raise UserError(f"corpus {corpus.path} holds {corpus.n_documents} documents; a split wants two or more")
    found: dict[str, Any] = {}
    for name, numbers in zip(
        ("train", "held-out"), split_documents(corpus.doc_ids, options.held_out_fraction, salt=SPLIT_SALT), strict=True
    ):
        keep_G = np.zeros(corpus.n_documents, dtype=bool)
        keep_G[numbers] = True
        found[name] = _derive(options, [corpus], [keep_G], out / name)
    return found


def _derive(options: Options, corpora: list[Corpus], keeps: list[np.ndarray], out: Path) -> dict[str, Any]:
    import numpy as np

    from lsm.corpus.derive import Chosen, derive
    from lsm.corpus.reader import Corpus
    from lsm.files import sha256_file
    from lsm.progress import Progress

    made_by: dict[str, Any] = {"action": options.action, "part": out.name} if options.action == "split" else {"action": options.action}
    made_by |= {name: getattr(options, name) for name in _OF_ACTION[options.action]}
    if options.ids is not None:
        made_by["ids"] = sha256_file(options.ids)
    if options.unlike:
        made_by["unlike"] = [Corpus.open(path).fingerprint for path in options.unlike]
    chosen = [Chosen(corpus, keep_G) for corpus, keep_G in zip(corpora, keeps, strict=True)]
    n_kept = sum(int(np.diff(one.corpus.starts)[one.keep_G].sum()) for one in chosen)
    with Progress(f"{options.action} → {out}", n_kept, "sentences", quiet=options.quiet) as progress:
        manifest = derive(out, chosen, made_by, progress.advance, int8=options.vectors == "int8")
    counts = {key: manifest[key] for key in ("n_documents", "n_sentences")}
    left_out = sum(corpus.n_documents for corpus in corpora) - manifest["n_documents"]
    told = "" if options.action in ("split", "convert") else f"; {left_out:,} documents left out"
    print(f"corpus {out}: {counts['n_documents']:,} documents, {counts['n_sentences']:,} sentences{told}")
    return {"corpus": str(out), **counts, "n_left_out": left_out}


def _to_int8(options: Options, corpus: Corpus, out: Path) -> dict[str, Any]:
    import numpy as np

    if corpus.parts()[0]["dtype"] == "int8":
        raise UserError(f"corpus {corpus.path} holds int8 vectors already; use it as it is")
    found = _derive(options, [corpus], [np.ones(corpus.n_documents, dtype=bool)], out)
    before, after = (sum(file.stat().st_size for file in path.glob("shards/*/*")) for path in (corpus.path, out))
    print(f"{before / 2**20:,.1f} MiB → {after / 2**20:,.1f} MiB")
    return found | {"bytes_before": before, "bytes": after}


def _convert(options: Options, corpus: Corpus, out: Path, precision: Literal["float32", "float16"]) -> dict[str, Any]:
    from lsm.corpus.convert import to_parquet
    from lsm.progress import Progress, say

    if out.exists():
        raise UserError(f"--out {out} is there already; choose another folder")
    if not corpus.keeps_text:
        say(f"corpus {corpus.path} keeps residual codes and no text: the column text will be empty", quiet=options.quiet)
    with Progress(f"convert → {out}", corpus.n_sentences, "sentences", quiet=options.quiet) as progress:
        names = to_parquet(corpus, out, precision=precision, advance=progress.advance)
    n_bytes = sum((out / name).stat().st_size for name in names)
    print(f"{out}: {corpus.n_sentences:,} rows in {len(names)} parquet files, {n_bytes / 2**20:,.1f} MiB")
    return {"out": str(out), "files": names, "n_rows": corpus.n_sentences, "bytes": n_bytes}
