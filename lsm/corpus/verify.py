"""Is a corpus whole? Every file against its hash, every row against its table, every document against its own text.

Shape letters: S sentences of a shard, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.corpus import format as layout
from lsm.corpus.index import require_whole_index
from lsm.corpus.reader import Corpus
from lsm.corpus.standing import file_problem
from lsm.corpus.writer import content_sha256, read_done, text_sha256
from lsm.errors import UserError
from lsm.files import DONE_MARKER, read_json, sha256_file

_SHOWN = 40
"""Problems that the line names; of more it gives the number."""
_CALLED = {"encoder": "encoder", "segmentation": "segmentation", "residual": "residual code"}
ReadTexts = Callable[[int], list[str]]
"""Number of a document → its sentences, read from their residual codes."""


def verify(corpus: Corpus, advance: Callable[[int], None] = lambda n: None, read_texts: ReadTexts | None = None) -> None:
    """Check a finished corpus from end to end, shard by shard.

    Args:
        advance: called with the number of sentences of every shard that has been read.
        read_texts: reads the sentences of a document where the corpus keeps none.

    Raises:
        UserError: names every broken shard and file, what is wrong with it, and how to mend all.
    """
    problems = []
    table = corpus.path / layout.DOCUMENTS
    if not table.exists():
        problems.append(f"{layout.DOCUMENTS} is missing")
    elif sha256_file(table) != corpus.manifest["documents_sha256"]:
        problems.append(f"{layout.DOCUMENTS} differs from its hash in {layout.MANIFEST}")
    problems += _manifest_problems(corpus)
    # Codes are read by documents of the table: without it, and without the right code, only the hashes are compared.
    readable = not problems
    broken, n_documents = [], 0
    for index, entry in enumerate(corpus.manifest["shards"]):
        unread = read_texts is None or corpus.keeps_text or not readable
        read = None if unread else _of_shard(corpus, read_texts, n_documents, entry["n_documents"])
        if problem := _problem(corpus, index, read):
            broken.append(index)
            problems.append(f"shard {layout.shard_name(index)}: {problem}")
        n_documents += entry["n_documents"]
        advance(entry["n_sentences"])
    try:
        require_whole_index(corpus.path, corpus.manifest)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError(f"{corpus.path} is not whole: {_listed(problems)}; {layout.mended_by(corpus.path, broken)}")


def require_planned_code(corpus: Corpus) -> None:
    """Raise `UserError` where the manifest names another residual code than `plan.json`, with which the shards were made."""
    if problem := _differs_from_plan(corpus, ("residual",)):
        raise UserError(f"{problem}; {layout.mended_by(corpus.path)}")


def require_whole_shard(corpus: Corpus, index: int) -> None:
    """Raise `UserError` where shard `index` is damaged or differs from the manifest."""
    if problem := _problem(corpus, index):
        where = f"{corpus.path} is not whole: shard {layout.shard_name(index)}"
        raise UserError(f"{where}: {problem}; {layout.mended_by(corpus.path, [index])}")


def _listed(problems: list[str]) -> str:
    return "; ".join(problems[:_SHOWN]) + (f"; and {len(problems) - _SHOWN} more shards" if len(problems) > _SHOWN else "")


def _manifest_problems(corpus: Corpus) -> list[str]:
    """Where the manifest contradicts itself or the plan; what it says of a shard is compared with that."""
    manifest = corpus.manifest
    problems = [
        f"{layout.MANIFEST}: its {key} is {manifest[key]}, its shards have {total}"
        for key in ("n_documents", "n_sentences", "n_characters", "n_tokens", "n_truncated")
        if manifest[key] != (total := sum(shard.get(key, 0) for shard in manifest["shards"]))
    ]
    names = [layout.shard_name(index) for index in range(len(manifest["shards"]))]
    if [shard.get("name") for shard in manifest["shards"]] != names:
        problems.append(f"{layout.MANIFEST}: its shards are misnamed")
    planned = _differs_from_plan(corpus, ("encoder", "segmentation", "residual"))
    return [*problems, *([planned] if planned else [])]


def _differs_from_plan(corpus: Corpus, keys: Sequence[str]) -> str | None:
    """The first of `keys` for which manifest and plan name different things."""
    path = corpus.path / layout.PLAN
    if not path.exists():
        return None
    try:
        plan = dict(read_json(path))
    except (UserError, TypeError, ValueError):
        return f"{layout.PLAN} is not valid JSON"
    for key in keys:
        here, there = corpus.manifest[key] or {}, plan.get(key) or {}
        if differing := [f"{name} {here.get(name)} for {there.get(name)}" for name in here | there if here.get(name) != there.get(name)]:
            return f"{layout.MANIFEST} names another {_CALLED[key]} than {layout.PLAN} ({', '.join(differing)})"
    return None


def _problem(corpus: Corpus, index: int, read: Callable[[], list[str]] | None = None) -> str | None:
    return shard_problem(corpus.path, index, corpus.parts()[0], read) or _differs_from_manifest(corpus, index)


def _of_shard(corpus: Corpus, read_texts: ReadTexts, first: int, n: int) -> Callable[[], list[str]]:
    return lambda: [text for doc in range(first, first + n) for text in read_texts(doc)]


def shard_problem(path: Path, index: int, semantic: dict[str, Any], read: Callable[[], list[str]] | None = None) -> str | None:
    """What is wrong with a shard, in a few words; None when it is whole.

    Args:
        semantic: the manifest's entry of the semantic part.
        read: gives the shard's sentences where it keeps no text.
    """
    folder = layout.shard_folder(path, index)
    try:
        done = read_done(path, index)
        if done is None:
            return "it is missing"
        if problem := file_problem(folder, done["files"]):
            return problem
        z_SD = np.load(folder / layout.SEMANTIC, mmap_mode="r", allow_pickle=False)
        scale_S = np.load(folder / layout.SEMANTIC_SCALE, allow_pickle=False) if semantic["scale"] == "rows" else None
        sentences = pq.read_table(folder / layout.SENTENCES, partitioning=None)
        documents = pq.read_table(folder / layout.DOCUMENTS, partitioning=None)
    except UserError:
        return f"{DONE_MARKER} is not valid JSON"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return " ".join(str(error).split())[:200]
    if problem := _vectors_problem(z_SD, scale_S, (done["n_sentences"], int(semantic["dim"])), semantic["dtype"]):
        return problem
    if len(sentences) != done["n_sentences"] or len(documents) != done["n_documents"]:
        return f"{len(sentences)} sentences and {len(documents)} documents, not {done['n_sentences']} and {done['n_documents']}"
    texts = sentences["text"].to_pylist()
    if sentences["text"].null_count:
        if read is None:
            return None
        texts = read()
    return _text_problem(sentences, texts, documents, done["content_sha256"])


def _vectors_problem(z_SD: np.ndarray, scale_S: np.ndarray | None, shape: tuple[int, int], dtype: str) -> str | None:
    if z_SD.shape != shape or z_SD.dtype != np.dtype(dtype):
        return f"{layout.SEMANTIC} holds {z_SD.dtype} {z_SD.shape}, not {dtype} {shape}"
    if scale_S is not None and (scale_S.shape != shape[:1] or scale_S.dtype != np.float32):
        return f"{layout.SEMANTIC_SCALE} holds {scale_S.dtype} {scale_S.shape}, not float32 {shape[:1]}"
    finite_S = np.isfinite(z_SD).all(axis=1) if scale_S is None else np.isfinite(scale_S) & (scale_S >= 0)
    return None if finite_S.all() else f"vector {int(np.flatnonzero(~finite_S)[0])} is not finite"


def _text_problem(sentences: pa.Table, texts: list[str], documents: pa.Table, expected: str) -> str | None:
    row = 0
    columns = {name: sentences[name].to_pylist() for name in ("doc_id", "gap", "char_start", "char_end")} | {"text": texts}
    rows = documents.to_pylist()
    for document in rows:
        stop = row + document["n_sentences"]
        if document["first_row"] != row:
            return f"document {document['doc_id']!r} starts at row {document['first_row']}, not {row}"
        pieces, at = [document["lead"]], len(document["lead"])
        for i in range(row, stop):
            text, gap = columns["text"][i], columns["gap"][i]
            if columns["doc_id"][i] != document["doc_id"]:
                return f"row {i} belongs to {columns['doc_id'][i]!r}, not {document['doc_id']!r}"
            if (columns["char_start"][i], columns["char_end"][i]) != (at, at + len(text)):
                return f"row {i} claims characters {columns['char_start'][i]} to {columns['char_end'][i]}, found {at} to {at + len(text)}"
            pieces += (text, gap)
            at += len(text) + len(gap)
        if text_sha256("".join(pieces)) != document["text_sha256"]:
            return f"document {document['doc_id']!r}: its sentences do not give its text back"
        row = stop
    if content_sha256((document["doc_id"], document["text_sha256"]) for document in rows) != expected:
        return "its documents differ from its done.json"
    return None


def _differs_from_manifest(corpus: Corpus, index: int) -> str | None:
    entry = {key: value for key, value in corpus.manifest["shards"][index].items() if key != "name"}
    return None if read_done(corpus.path, index) == entry else f"its done.json differs from {layout.MANIFEST}"
