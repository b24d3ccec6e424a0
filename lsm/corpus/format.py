"""The corpus format: file names, parquet schemas, and what makes two encoders the same; reader and writer agree on it here.

    corpus/ manifest.json plan.json (or derived.json, where it was made of other corpora) documents.parquet
            index/ starts.npy section.npy part.npy done.json
            shards/00000/ semantic.npy [semantic-scale.npy residual.npy residual-more.npy] sentences.parquet documents.parquet done.json

No file holds a time, a host name or a path, so the same input gives the same bytes anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lsm.errors import UserError
from lsm.files import fingerprint, read_json

FORMAT = "lsm-corpus"
FORMAT_VERSION = 1
FORMAT_VERSION_INT8 = 2
"""Of corpora with int8 semantic vectors, which an older lsm must not open; those with float16 stay at 1."""

MANIFEST = "manifest.json"
PLAN = "plan.json"
DERIVED = "derived.json"
PULL = "pull.json"
DOCUMENTS = "documents.parquet"
SENTENCES = "sentences.parquet"
SEMANTIC = "semantic.npy"
SEMANTIC_SCALE = "semantic-scale.npy"
RESIDUAL = "residual.npy"
RESIDUAL_MORE = "residual-more.npy"
SHARDS = "shards"
INDEX = "index"

DOCUMENT_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("title", pa.string()),
        ("shard", pa.int32()),
        ("first_row", pa.int64()),  # row of its first sentence inside the shard
        ("n_sentences", pa.int32()),
        ("lead", pa.string()),  # what stands before the first sentence
        ("text_sha256", pa.string()),
        ("n_characters", pa.int64()),
    ]
)
SENTENCE_SCHEMA = pa.schema(
    [
        ("doc_id", pa.dictionary(pa.int32(), pa.string())),
        ("index", pa.int32()),
        ("section", pa.int32()),
        ("part", pa.int32()),  # 0 = whole sentence or first piece, 1, 2 … = later pieces of a split sentence
        ("text", pa.string()),
        ("char_start", pa.int64()),
        ("char_end", pa.int64()),
        ("gap", pa.string()),  # what stands between this sentence and the next
        ("n_tokens", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)

RESIDUAL_SCHEMAS = {
    "superposition": pa.schema(
        [
            ("code_count", pa.uint16()),  # codes of the sentence: the first in residual.npy, the others in residual-more.npy
            ("code_tokens", pa.uint16()),
            ("code_variant", pa.uint8()),
            ("code_checksum", pa.uint32()),
            ("code_steps", pa.list_(pa.uint16())),
        ]
    ),
    "learned": pa.schema([("code_tokens", pa.uint16())]),  # the LM's, end token included; more than the code's max_tokens = cut
}
"""Further columns of a sentence in a corpus with a residual code, by its kind (superposition's: see `lsm.codes.storage`)."""

_ENCODER_IDENTITY = ("sha256", "pooling", "normalised", "dim", "max_tokens", "context_sentences")
"""Keys of an encoder fingerprint that say which space its vectors live in (name, source and dtype may differ)."""


def shard_name(index: int) -> str:
    """Folder name of a shard: 0 → `00000`."""
    return f"{index:05d}"


def shard_folder(corpus: Path, index: int) -> Path:
    """Where shard `index` of a corpus lies."""
    return corpus / SHARDS / shard_name(index)


def maker(corpus: Path) -> str:
    """The command that made a corpus and mends it when it is run again."""
    if (corpus / PULL).exists():
        return "lsm corpus pull"
    return "lsm corpus" if (corpus / DERIVED).exists() else "encode-corpus"


def mended_by(corpus: Path, shards: Sequence[int] = ()) -> str:
    """What a person does about a damaged corpus; `shards` tell which of its calls made them."""
    again = f"run the {maker(corpus)} command that made it again: it makes only what is broken"
    if (corpus / PULL).exists() or not (corpus / PLAN).exists():
        return again
    try:
        stages = read_json(corpus / PLAN)["stages"]
        firsts = [stage["first_shard"] for stage in stages]
        wanted = sorted({max(number for number, first in enumerate(firsts) if first <= shard) for shard in shards})
        calls = [f"{', '.join(stages[number]['inputs'])}{' --append' if number else ''}" for number in wanted]
    except (UserError, LookupError, TypeError, ValueError):
        return f"restore {PLAN}, without which nothing can be mended, then {again}"
    if len(stages) < 2 or not calls:
        return again
    return again.replace("command", f"command of {'; then of '.join(calls)}", 1)


def broken_manifest(corpus: Path, why: str) -> str:
    """The line for a manifest that is damaged: nothing stands in it alone."""
    return f"{corpus / MANIFEST} is damaged ({why}); {mended_by(corpus)}"


def is_unfinished(corpus: Path) -> bool:
    """Whether a folder is a corpus in the making."""
    return not (corpus / MANIFEST).exists() and any((corpus / name).exists() for name in (PLAN, DERIVED, PULL))


def semantic_part(dim: int, dtype: str = "float16") -> dict[str, Any]:
    """The manifest's entry for the frozen encoder's output: float16 as it is, or int8 with one scale a row."""
    return {"name": "semantic", "dim": dim, "dtype": dtype, "scale": "rows" if dtype == "int8" else None}


def residual_part(residual: dict[str, Any]) -> dict[str, Any]:
    """The manifest's entry for a residual code of this fingerprint."""
    scale = residual["scale"] if residual["kind"] == "learned" else "code_steps"
    return {"name": "residual", "dim": residual["dims"], "dtype": f"int{residual['bits']}", "scale": scale}


def same_space(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two encoder fingerprints stand for the same vector space (float32 and bf16 of one model do)."""
    return all(one.get(key) == other.get(key) for key in _ENCODER_IDENTITY)


def encoder_line(encoder: dict[str, Any]) -> str:
    """An encoder fingerprint in a few words: `minilm (384 dims, sha256 1a2b3c4d5e6f, mean, bfloat16)`."""
    sha256 = str(encoder.get("sha256") or "none")[:12]
    context = f", each after {encoder['context_sentences']} sentences" if encoder.get("context_sentences") else ""
    return f"{encoder.get('name')} ({encoder.get('dim')} dims, sha256 {sha256}, {encoder.get('pooling')}, {encoder.get('dtype')}{context})"


def residual_line(residual: dict[str, Any]) -> str:
    """A residual code's fingerprint in a few words: `superposition (256 dims × int8, seed 0, at most 61 tokens a code, verified)`."""
    if residual.get("kind") == "learned":
        return (
            f"learned (the first {residual.get('dims')} of {residual.get('whole_dims')} dims × int{residual.get('bits')}, "
            f"sha256 {str(residual.get('sha256'))[:12]}, {residual.get('max_tokens')} tokens)"
        )
    verified = ", verified" if residual.get("verified") else ""
    return (
        f"{residual.get('kind')} ({residual.get('dims')} dims × int{residual.get('bits')}, seed {residual.get('seed')}, "
        f"{residual.get('tokens_per_code')} tokens a code{verified})"
    )


def require_same_space(found: dict[str, Any], wanted: dict[str, Any], *, what: str) -> None:
    """Refuse vectors of another encoder.

    Args:
        found: encoder fingerprint of `what`.
        wanted: encoder fingerprint of the thing that shall read it.
        what: name of the file or folder for the message.

    Raises:
        UserError: the two differ; the message shows both.
    """
    if not same_space(found, wanted):
        context = wanted.get("context_sentences") or 0
        how = f"--encoder {wanted.get('name')}" + (f" --context-sentences {context}" if found.get("context_sentences") or context else "")
        raise UserError(
            f"{what} was encoded by {encoder_line(found)} [{fingerprint(found)}], but {encoder_line(wanted)} [{fingerprint(wanted)}] "
            f"is needed; encode it again with {how} or use what was made for {found.get('name')}"
        )
