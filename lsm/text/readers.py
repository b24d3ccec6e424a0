"""INPUT… → a stream of documents in a fixed order, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from lsm.errors import UserError
from lsm.progress import say
from lsm.text.documents import Document
from lsm.text.hub import hub_documents
from lsm.text.inputs import HubInput, InputFile, RecipeInput, expand_input, files_below, suffix_of
from lsm.text.plain import text_documents
from lsm.text.recipes import Recipe, corpora_folder, load_recipe, recipe_names
from lsm.text.remote import RemoteFile
from lsm.text.rows import RowFields, jsonl_documents, parquet_documents

_TEXT_SHARE = {".gz": 2.7, ".zst": 3.0, ".bz2": 3.5, ".xz": 3.4, ".parquet": 1.8}
"""Text bytes for a byte of a compressed file, roughly."""
_CHANGED = (
    "{} changed while it was read; when nothing writes to it any more, run the same command again: what is finished is kept if the "
    "documents in it are still the same, else restore the file or choose another --out"
)

_LOOK_AGAIN_SECONDS = 30.0


def iter_documents(inputs: Sequence[str], *, limit: int | None = None, note: Callable[[str], None] = say) -> Iterator[Document]:
    """Read every document of `inputs`, in their order; folders and globs by sorted file name.

    The same inputs give the same documents with the same names in the same order on every machine. At most one document and
    about 64 MiB besides are held at a time.

    Args:
        inputs: files, folders, globs, URLs of them, recipe names (`sotu`, `sotu:0-90`) or `hf:DATASET[:SPLIT]`.
        limit: stop after so many documents (at least 1).
        note: called with one line when something was skipped (documents or found files without text).

    Raises:
        UserError: an input that does not exist or cannot be read as text (naming file, line and way out), two documents with one
            name, or no document at all.
    """
    if not inputs:
        raise UserError("no INPUT given; give a file, folder, glob, URL, recipe or hf:DATASET")
    assert limit is None or limit >= 1
    sources = [expand_input(value, recipe_names()) for value in inputs]
    count = skipped = 0
    seen: set[int] = set()
    for document in chain.from_iterable(map(_source_documents, sources)):
        if document is None:
            skipped += 1
            continue
        key = hash(document.doc_id)
        if key in seen:
            raise UserError(
                f"two documents are called {document.doc_id!r} (the second in {document.source}); make their ids differ, "
                "or give the folder above the files as one INPUT so that their names include the folder"
            )
        seen.add(key)
        count += 1
        yield document
        if count == limit:
            break
    if skipped:
        note(f"skipped {skipped:,} {'documents' if skipped > 1 else 'document'} without text")
    if count == 0:
        raise UserError(f"{' '.join(inputs)}: no document with text in it; give other inputs")


def input_bytes(inputs: Sequence[str]) -> int | None:
    """Bytes of text in all input files, roughly, for plans and estimates; None where nothing tells (a hub data set, a web server)."""
    total = 0.0
    for value in inputs:
        source = expand_input(value, recipe_names())
        if isinstance(source, RecipeInput):
            recipe = load_recipe(source.name)
            if recipe.hub is not None:
                return None
            source = _recipe_files(recipe)[source.start : source.stop]
        if isinstance(source, HubInput):
            return None
        for file in source:
            n_bytes = file.path.listed_bytes if isinstance(file.path, RemoteFile) else file.path.stat().st_size
            if n_bytes is None:
                return None
            total += n_bytes * _TEXT_SHARE.get(file.path.suffix.lower(), 1.0)
    return int(total)


def _source_documents(source: list[InputFile] | HubInput | RecipeInput) -> Iterator[Document | None]:
    if isinstance(source, HubInput):
        return hub_documents(source.dataset, split=source.split)
    if isinstance(source, RecipeInput):
        return _recipe_documents(source)
    return _files_documents(source, RowFields())


def _recipe_documents(source: RecipeInput) -> Iterator[Document | None]:
    recipe = load_recipe(source.name)
    fields = RowFields(**recipe.fields)
    if recipe.hub is not None:
        documents = hub_documents(recipe.hub.dataset, config=recipe.hub.config, split=recipe.hub.split, fields=fields)
    else:
        documents = _files_documents(_recipe_files(recipe), fields)
    return islice((document for document in documents if document is not None), source.start, source.stop)


def _recipe_files(recipe: Recipe) -> list[InputFile]:
    if recipe.asset is not None:
        from lsm.assets import resolve

        path, pattern = resolve(recipe.asset.name).path, recipe.asset.files
    else:
        path, pattern = corpora_folder(), recipe.files or ""
    parent, _, names = pattern.rpartition("/")
    return files_below(path / parent, names, f"recipe {recipe.name}")


def _files_documents(files: list[InputFile], fields: RowFields) -> Iterator[Document | None]:
    for file in files:
        try:
            yield from _unchanged(file, fields)
        except OSError as error:
            raise UserError(f"cannot read {file.path}: {error.strerror or error}; mend its permissions or the disk") from error


def _unchanged(file: InputFile, fields: RowFields) -> Iterator[Document | None]:
    """The file's documents, as long as it stays as it was. A remote one is looked at now and then, a request each time."""
    pause = _LOOK_AGAIN_SECONDS if isinstance(file.path, RemoteFile) else 0.0
    n_bytes, before = file.look()
    looked = time.monotonic()
    try:
        for document in _file_documents(file, fields, n_bytes):
            if time.monotonic() - looked >= pause:
                _require_same(file, before)
                looked = time.monotonic()
            yield document
    except UserError as error:
        after = before
        with suppress(UserError, OSError):
            after = file.look()[1]
        if after != before:  # and that is what is wrong with it
            raise UserError(_CHANGED.format(file.path)) from error
        raise
    _require_same(file, before)


def _require_same(file: InputFile, before: tuple[Any, ...]) -> None:
    if file.look()[1] != before:
        raise UserError(_CHANGED.format(file.path))


def _file_documents(file: InputFile, fields: RowFields, n_bytes: int | None) -> Iterator[Document | None]:
    suffix = suffix_of(file.path)
    if suffix == ".parquet":
        documents = parquet_documents
    elif suffix is not None and suffix.startswith((".txt", ".md")):
        documents = _text_documents
    else:
        documents = jsonl_documents
    if n_bytes == 0:
        if not file.found:
            raise UserError(f"{file.path} is empty; give a file with text in it")
        return iter([None])
    return documents(file, fields)


def _text_documents(file: InputFile, fields: RowFields) -> Iterator[Document | None]:
    """As `text_documents`, with None for a file of white space."""
    found = False
    for document in text_documents(file):
        found = True
        yield document
    if not found:
        yield None
