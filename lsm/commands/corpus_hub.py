"""`lsm corpus push|pull`: a corpus to and from the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsm.commands.corpus import Options


def push_corpus(options: Options) -> dict[str, Any]:
    from lsm.corpus.hub import push
    from lsm.corpus.reader import Corpus
    from lsm.progress import Progress

    folder, repository = options.corpora[0], options.corpora[1].as_posix()
    corpus = Corpus.open(folder)
    with Progress(f"push → {repository}", corpus.n_sentences, "sentences", quiet=options.quiet) as progress:
        how = {"licence": options.licence, "private": options.private, "revision": options.revision}
        found = push(corpus, repository, **how, advance=progress.advance)
    print(f"{found['url']}: corpus {corpus.fingerprint}, {corpus.n_documents:,} documents, {corpus.n_sentences:,} sentences")
    print(f"get it with: lsm corpus pull {repository} FOLDER --revision {found['commit']}")
    return {**found, "corpus": str(folder), "fingerprint": corpus.fingerprint}


def pull_corpus(options: Options) -> dict[str, Any]:
    from lsm.corpus.hub import pull
    from lsm.corpus.reader import Corpus
    from lsm.progress import Progress

    repository, folder = options.corpora[0].as_posix(), options.corpora[1]
    with Progress(f"pull → {folder}", None, "sentences", quiet=options.quiet) as progress:
        found = pull(repository, folder, revision=options.revision, advance=progress.advance)
    corpus = Corpus.open(folder)
    print(f"corpus {folder}: {corpus.n_documents:,} documents, {corpus.n_sentences:,} sentences, every hash agrees")
    print(f"commit {found['commit']} of {repository}")
    counts = {"n_documents": corpus.n_documents, "n_sentences": corpus.n_sentences}
    return {"repository": repository, "commit": found["commit"], "corpus": str(folder), "fingerprint": corpus.fingerprint, **counts}
