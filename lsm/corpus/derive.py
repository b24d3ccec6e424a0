"""A corpus made of documents of others: rows are copied as they are stored, shard by shard, so that nothing is encoded again.

Shape letters: S sentences of a shard, G documents of a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lsm.corpus import format as layout
from lsm.corpus.int8 import to_int8
from lsm.corpus.reader import Corpus
from lsm.corpus.standing import shard_states
from lsm.corpus.writer import write_manifest, write_shard_arrays
from lsm.errors import UserError
from lsm.files import TEMPORARY_SUFFIX, fingerprint, read_json, remove_leftovers, sha256_file, write_json
from lsm.lock import LOCK, only_writer


@dataclass(frozen=True)
class Chosen:
    """The documents of one corpus that another is made of."""

    corpus: Corpus
    keep_G: np.ndarray
    """bool [n_documents]."""


def derive(
    out: Path,
    sources: Sequence[Chosen],
    made_by: dict[str, Any],
    advance: Callable[[int], None] = lambda n: None,
    *,
    int8: bool = False,
) -> dict[str, Any]:
    """Write the chosen documents, in their order, as a corpus of their own; a second call goes on where the first stopped.

    Every shard with a chosen document becomes one. `derived.json` holds `made_by` and the sources' fingerprints, and stands first.

    Args:
        made_by: the operation and its options, for the record; a resume with others is refused.
        advance: called with the number of sentences of each shard written, or found there.
        int8: store the semantic vectors as int8 (`lsm.corpus.int8`); rows that are int8 already are copied.

    Returns:
        The manifest.

    Raises:
        UserError: corpora of other vectors, codes or sentence boundaries; no document is left; the folder holds something else.
    """
    first = sources[0].corpus
    int8 = int8 or first.parts()[0]["dtype"] == "int8"
    for source in sources:
        require_same_kind(first, source.corpus)
        if (inside := source.corpus.path.resolve()) in (out.resolve(), *out.resolve().parents):
            raise UserError(f"--out {out} lies inside the corpus {inside.name} that is read; choose a folder elsewhere")
    if not any(source.corpus.n_documents for source in sources):
        raise UserError(f"corpus {first.path} holds no document")
    if not any(source.keep_G.any() for source in sources):
        raise UserError(f"no document is left for --out {out}; choose less strictly")
    chosen = [fingerprint(np.flatnonzero(source.keep_G).tolist()) for source in sources]
    record = {"made_by": made_by, "sources": [source.corpus.fingerprint for source in sources], "chosen": chosen}
    with only_writer(out):
        _claim(out, record)
        states, index = shard_states(out), 0
        for source in sources:
            before = 0
            for shard, entry in enumerate(source.corpus.manifest["shards"]):
                keep_G = source.keep_G[before : before + entry["n_documents"]]
                before += entry["n_documents"]
                if keep_G.any():
                    done = states[index].done if index < len(states) else None
                    done = done or _copy(source.corpus, shard, keep_G, out, index, int8)
                    advance(done["n_sentences"])
                    index += 1
        return write_manifest(
            out,
            index,
            first.encoder,
            first.manifest["segmentation"],
            residual=first.residual,
            keep_text=first.keeps_text,
            semantic_dtype="int8" if int8 else "float16",
        )


def require_same_kind(one: Corpus, other: Corpus) -> None:
    """Raise `UserError` unless rows of the two can stand in one corpus: one vector space, one residual code, one way to cut sentences."""
    other.require_encoder(one.encoder)
    for what, mine, theirs in (
        ("residual code", one.residual, other.residual),
        ("text kept", one.keeps_text, other.keeps_text),
        ("dtype of the encoder", one.encoder.get("dtype"), other.encoder.get("dtype")),
        ("segmentation", one.manifest["segmentation"], other.manifest["segmentation"]),
    ):
        if mine != theirs:
            raise UserError(f"{other.path} differs from {one.path} in its {what}: {theirs} there, {mine} here; encode one of them again")
    mine, theirs = (corpus.parts()[0]["dtype"] for corpus in (one, other))
    if mine != theirs:
        raise UserError(
            f"{other.path} stores its vectors as {theirs}, {one.path} as {mine}; turn the other into int8 first: "
            f"lsm corpus convert {other.path if mine == 'int8' else one.path} --vectors int8 --out DIR"
        )


def _claim(out: Path, record: dict[str, Any]) -> None:
    path = out / layout.DERIVED
    if path.exists():
        there = read_json(path)
        if there != record:
            there = there if isinstance(there, dict) else {}
            differing = [f"{key} {there.get(key)} there, {record[key]} now" for key in record if there.get(key) != record[key]]
            raise UserError(f"{out} was made otherwise: {'; '.join(differing)}; choose another --out")
    elif strangers := [item.name for item in out.iterdir() if item.name != LOCK and not item.name.endswith(TEMPORARY_SUFFIX)]:
        raise UserError(f"--out {out} holds something else already ({strangers[0]}); choose another folder")
    for folder in (out, out / layout.SHARDS):
        if folder.is_dir():
            remove_leftovers(folder)
    write_json(path, record)


def require_hashes(corpus: Corpus, shard: int) -> None:
    """Raise `UserError` where a file of the shard is missing or differs from its hash."""
    folder = layout.shard_folder(corpus.path, shard)
    for name, sha256 in corpus.manifest["shards"][shard]["files"].items():
        if not (folder / name).exists() or sha256_file(folder / name) != sha256:
            raise UserError(
                f"{folder / name} is missing or differs from its hash; run the {layout.maker(corpus.path)} command that made "
                f"{corpus.path} again, which mends it"
            )


def _copy(corpus: Corpus, shard: int, keep_G: np.ndarray, out: Path, index: int, int8: bool) -> dict[str, Any]:
    """Write the kept documents of a shard as shard `index` of `out`; its done record. A damaged shard is not passed on."""
    require_hashes(corpus, shard)
    arrays, sentences = corpus.shard_files(shard)
    documents = corpus.shard_documents(shard)
    lengths_G = documents["n_sentences"].to_numpy()
    keep_S = np.repeat(keep_G, lengths_G)
    kept = {}
    for name, array in arrays.items():
        rows = keep_S if name != layout.RESIDUAL_MORE else np.repeat(keep_S, sentences["code_count"].to_numpy().astype(np.int64) - 1)
        kept[name] = array[rows]
    if int8 and layout.SEMANTIC_SCALE not in kept:
        kept[layout.SEMANTIC], kept[layout.SEMANTIC_SCALE] = to_int8(kept[layout.SEMANTIC])
    documents = documents.filter(pa.array(keep_G))
    starts_G = np.concatenate([[0], np.cumsum(lengths_G[keep_G], dtype=np.int64)])[:-1]
    for name, values in (("shard", np.full(len(documents), index, np.int32)), ("first_row", starts_G)):
        documents = documents.set_column(documents.schema.get_field_index(name), layout.DOCUMENT_SCHEMA.field(name), pa.array(values))
    sentences = sentences.filter(pa.array(keep_S))
    ids = sentences["doc_id"].combine_chunks().cast(pa.string()).dictionary_encode()  # without those of documents left out
    sentences = sentences.set_column(0, layout.SENTENCE_SCHEMA.field("doc_id"), ids)
    return write_shard_arrays(out, index, kept, sentences.combine_chunks(), documents.combine_chunks())
