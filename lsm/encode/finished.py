"""How a call of encode-corpus ends, by one process or many tasks: the manifest, unless the one on disk is what it must be, and a report."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lsm.corpus import format as layout
from lsm.corpus.index import mend_index
from lsm.corpus.writer import manifest_of, write_manifest
from lsm.encode.resume import Opened, unfinished
from lsm.encode.stages import StageSeconds
from lsm.errors import UserError
from lsm.files import sha256_file
from lsm.progress import say


@dataclass
class Written:
    """What one process has encoded and written."""

    sentences: int = 0
    shards: int = 0
    stages: StageSeconds = field(default_factory=StageSeconds)


def finished_manifest(
    out: Path,
    opened: Opened,
    counts_of_input: dict[str, int],
    *,
    first_shard: int,
    n_shards_of_stage: int,
    n_shards_written: int,
    damaged: Collection[int],
    quiet: bool,
) -> dict[str, Any]:
    """The manifest, written unless the one on disk is what it must be.

    Args:
        opened: as the corpus was found; where shards were written since, the states of this call's stage may be older or newer than that.
        counts_of_input: `Cutter.counts`.
        first_shard: where this call's stage begins.
        damaged: shards that were to be made again when the call began.

    Raises:
        UserError: the input held nothing, or another call's shards are missing.
    """
    n_shards = max(first_shard + n_shards_of_stage, opened.n_finished)
    if n_shards == 0:
        raise UserError(f"the input holds no text ({counts_of_input['n_blank_documents']} blank documents); nothing to encode")
    if left := [stage for stage in opened.lacking() if opened.shards_of(stage)[0] != first_shard]:
        raise UserError(f"this call's documents are all there, but {unfinished(opened, out, left[0])}")
    plan = opened.plan
    how: dict[str, Any] = {"residual": plan.residual, "keep_text": plan.keep_text}
    table = out / layout.DOCUMENTS
    if not n_shards_written and opened.manifest and table.exists():
        records = [state.done for state in opened.states[:n_shards] if state.done]
        # An old manifest says nothing of the text: it is not written again for that, or the corpus would have another fingerprint.
        if manifest_of(records, sha256_file(table), plan.encoder, plan.segmentation, **how) == {"text": "kept"} | opened.manifest:
            mend_index(out, opened.manifest)
            say(f"nothing to do: {out} holds all {opened.manifest['n_documents']:,} documents", quiet=quiet)
            return opened.manifest
    manifest = write_manifest(out, n_shards, plan.encoder, plan.segmentation, **how)
    for index, state in enumerate(opened.states[:n_shards]):
        if state.entry and index in damaged and {"name": layout.shard_name(index), **state.entry} != manifest["shards"][index]:
            say(
                f"shard {layout.shard_name(index)} has come out in other bits than it had (another machine or library?); "
                "the corpus has another fingerprint now",
                quiet=quiet,
            )
    return manifest


def results_of(
    corpus: Path,
    manifest: dict[str, Any],
    counts_of_input: dict[str, int],
    written: Written,
    *,
    workers: int,
    device: str,
    elapsed_seconds: float,
) -> dict[str, Any]:
    """What a call reports: counts of the corpus, of the input (`Cutter.counts`) and of what was written."""
    stages = written.stages
    n_bytes = sum(file.stat().st_size for file in corpus.rglob("*") if file.is_file())
    counts = {key: manifest[key] for key in ("n_documents", "n_sentences", "n_characters", "n_tokens", "n_truncated")}
    return {
        "corpus": str(corpus),
        **counts,
        "n_shards": len(manifest["shards"]),
        "n_sentences_written": written.sentences,
        **counts_of_input,
        "encoder": manifest["encoder"],
        "corpus_bytes": n_bytes,
        "workers": workers,
        "device": device,
        "sentences_per_second": round(written.sentences / stages.wall, 1) if stages.wall else None,
        "stage_seconds": {stage: round(seconds, 3) for stage, seconds in asdict(stages).items() if stage not in ("workers", "processes")},
        "stages": stages.line() if written.sentences else None,
        "elapsed_seconds": round(elapsed_seconds, 3),
    }
