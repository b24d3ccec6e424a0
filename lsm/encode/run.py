"""The resumable corpus-encoding run: one process reads, cuts and writes; workers encode; a shard is done when its marker exists.

Shape letters: S sentences of a shard, D vector width.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsm.corpus import format as layout
from lsm.corpus.writer import read_done, write_manifest, write_shard
from lsm.encode.contextual import texts_before
from lsm.encode.cut import CutShard, Cutter, DocumentLike, Segment, finished_documents
from lsm.encode.encoder import EncodedBatch, EncoderInfo, Precision
from lsm.encode.plan import Resume, RunPlan, Stage, windows
from lsm.encode.worker import EncodingPool, LoadCoder, WorkerDied
from lsm.errors import UserError
from lsm.files import TEMPORARY_SUFFIX, read_json, remove_leftovers
from lsm.lock import LOCK, only_writer
from lsm.progress import Progress, duration, say

_CHARACTERS_A_TOKEN = 32
"""More than nearly any token has."""
GPU_WORKERS = 2
"""Processes that share one GPU: while one tokenises, the other computes."""


@dataclass(kw_only=True)
class EncodeJob:
    """One call of encode-corpus; everything in it but `plan` and `stage` leaves the bytes of the corpus alone."""

    out: Path
    info: EncoderInfo
    plan: RunPlan
    stage: Stage
    segment: Segment
    precision: Precision = "auto"
    workers: int | None = None
    load_coder: LoadCoder | None = None
    """Makes the residual codes that `plan.residual` describes."""
    resume: Resume = "auto"
    append: bool = False
    expected_bytes: int | None = None
    quiet: bool = False
    writer: str = ""
    """Marks the half-written shards of this process, where others write into the same corpus."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be at least 1")

    @property
    def n_workers(self) -> int:
        """Worker processes: as asked for, else one a core on CPU, a few on a GPU."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.workers or (cores if self.info.device == "cpu" else GPU_WORKERS)


def encode_corpus(job: EncodeJob, documents: Iterable[DocumentLike]) -> dict[str, Any]:
    """Encode `documents` into the corpus folder `job.out`, going on where an interrupted run stopped.

    Returns:
        Counts of the corpus and of this call, and the manifest's fingerprints.

    Raises:
        UserError: the folder holds something else, another run writes there, the input or the settings differ from what
            the finished shards were made with, a worker died, or the disk is full. Finished shards are kept.
    """
    start = time.monotonic()
    with only_writer(job.out):
        plan, n_finished = open_plan(job)
        cutter = make_cutter(job, plan, *find_stage(job, plan, n_finished))
        n_of_stage, written = encode_missing(job, plan, cutter, cutter.shards(documents))
        n_shards = max(cutter.first_shard + n_of_stage, n_finished)
        if n_shards == 0:
            raise no_text(cutter.n_blank)
        nothing_to_do = not written.sentences and n_finished == n_shards
        if nothing_to_do:
            manifest = read_json(job.out / layout.MANIFEST)
        else:
            how = {"residual": plan.residual, "keep_text": plan.keep_text}
            manifest = write_manifest(job.out, n_shards, plan.encoder, plan.segmentation, **how)
    if nothing_to_do:
        say(f"nothing to do: {job.out} holds all {manifest['n_documents']:,} documents", quiet=job.quiet)
    how = {"workers": job.n_workers, "device": job.info.device, "elapsed_seconds": time.monotonic() - start}
    return results_of(job.out, manifest, cutter.counts(), written, **how)


@dataclass
class Written:
    """What one process has encoded and written."""

    sentences: int = 0
    shards: int = 0
    encoding_seconds: float = 0.0


def open_plan(job: EncodeJob) -> tuple[RunPlan, int]:
    """The plan to go on with (compared with what is on disk) and the number of shards in the manifest; what was left half-written goes.

    For whoever is alone with the folder.
    """
    on_disk = RunPlan.load(job.out)
    if on_disk is None:
        strangers = [path.name for path in job.out.iterdir() if path.name != LOCK and not path.name.endswith(TEMPORARY_SUFFIX)]
        if layout.DERIVED in strangers:
            raise UserError(
                f"--out {job.out} was made by lsm corpus; encode into another folder, and put the two together: lsm corpus merge"
            )
        if strangers:
            raise UserError(f"--out {job.out} is neither empty nor a corpus (it holds {strangers[0]}); choose another folder")
    require_resume(job.out, job.resume, append=job.append, begun=on_disk is not None)
    if on_disk is not None:
        on_disk.require_same(job.plan, job.out)
    remove_half_written(job.out)
    return on_disk or job.plan, n_in_manifest(job.out)


def require_resume(corpus: Path, resume: Resume, *, append: bool, begun: bool) -> None:
    """Raise `UserError` where `--resume` forbids to go on with what lies there, or asks for something to go on with."""
    if not begun and resume == "must":
        raise UserError(f"--resume must: {corpus} holds no run to go on with; use --resume auto")
    if begun and resume == "never" and not append:
        raise UserError(f"--resume never: {corpus} holds a corpus already; use --resume auto, or choose another --out")


def remove_half_written(corpus: Path) -> None:
    """Delete what killed processes left; only for whoever is alone with the folder."""
    for folder in (corpus, corpus / layout.SHARDS):
        if folder.is_dir():
            remove_leftovers(folder)


def n_in_manifest(corpus: Path) -> int:
    """Shards of the finished corpus, 0 before there is one."""
    manifest = corpus / layout.MANIFEST
    return len(read_json(manifest)["shards"]) if manifest.exists() else 0


def make_cutter(job: EncodeJob, plan: RunPlan, first: int, stop: int | None) -> Cutter:
    """The cutter of the stage that starts and ends there (`find_stage`)."""
    known: dict[str, str] = {}
    if job.append:
        for index in range(first):
            known.update(finished_documents(job.out, index))
    return Cutter(job.out, job.segment, plan.shard_rows, first, stop, known)


def find_stage(job: EncodeJob, plan: RunPlan, n_finished: int) -> tuple[int, int | None]:
    """Where the stage that this call belongs to (a new one, one that was interrupted, a finished one to check) starts and ends."""
    if not plan.stages:
        return 0, None
    last = plan.stages[-1]
    present = [read_done(job.out, index) is not None for index in range(n_finished)]
    unfinished = n_finished <= last.first_shard or not all(present[last.first_shard :])
    if unfinished and (job.append or len(plan.stages) > 1) and last.inputs != job.stage.inputs:
        raise UserError(
            f"{job.out}: an earlier call with {', '.join(last.inputs)} is unfinished; run that command again first, then this one"
        )
    if job.append:
        return last.first_shard if unfinished else n_finished, None
    if n_finished > last.first_shard or len(plan.stages) > 1:
        return 0, plan.stages[1].first_shard if len(plan.stages) > 1 else n_finished
    return 0, None


def encode_missing(job: EncodeJob, plan: RunPlan, cutter: Cutter, shards: Iterable[CutShard]) -> tuple[int, Written]:
    """Encode those of the cutter's shards that come with documents; the number of all of them, and what was written.

    Raises:
        UserError: a worker died; finished shards are kept.
    """
    written = Written()
    with EncodingPool(job.n_workers, job.info.name, device=job.info.device, precision=job.precision, load_coder=job.load_coder) as pool:
        try:
            return _encode_shards(job, plan, cutter, pool, shards, written), written
        except WorkerDied as error:
            raise UserError(
                f"a worker process died (out of memory?) while encoding into {job.out}; finished shards are kept: "
                f"run the same command again, with fewer --workers than {job.n_workers}"
            ) from error


def no_text(n_blank: int) -> UserError:
    """The error for an input of blank documents only."""
    return UserError(f"the input holds no text ({n_blank} blank documents); nothing to encode")


def _encode_shards(job: EncodeJob, plan: RunPlan, cutter: Cutter, pool: EncodingPool, shards: Iterable[CutShard], written: Written) -> int:
    pending: deque[tuple[CutShard, list[Future[EncodedBatch]]]] = deque()
    n_shards = 0
    begin = time.monotonic()
    with ExitStack() as stack:
        progress: Progress | None = None
        for shard in shards:
            n_shards += 1
            if shard.documents is not None:
                if progress is None:
                    begin_stage(job, plan, cutter.first_shard)
                    total = _say_plan(job, shard, n_shards - 1, pool, cutter.segmenting_seconds)
                    progress = stack.enter_context(Progress("encode", total, "sentences", quiet=job.quiet))
                    begin = time.monotonic()
                texts, before = _texts(shard, plan)
                tasks = [pool.encode(texts[rows], before and before[rows]) for rows in windows(len(texts), plan.window_rows)]
                pending.append((shard, tasks))
            while pending and (len(pending) >= job.n_workers + 2 or all(future.done() for future in pending[0][1])):
                assert progress is not None
                _write(job, *pending.popleft(), progress.advance, written)
        while pending:
            assert progress is not None
            _write(job, *pending.popleft(), progress.advance, written)
    written.encoding_seconds = time.monotonic() - begin
    return n_shards


def _texts(shard: CutShard, plan: RunPlan) -> tuple[list[str], list[str] | None]:
    """A shard's sentences, and what stands before each where the encoder reads it."""
    assert shard.documents is not None
    documents = [[sentence.text for sentence in document.sentences] for document in shard.documents]
    texts, n = [text for sentences in documents for text in sentences], int(plan.encoder.get("context_sentences", 0))
    return texts, texts_before(documents, n, longest=_CHARACTERS_A_TOKEN * int(plan.encoder["max_tokens"])) if n else None


def begin_stage(job: EncodeJob, plan: RunPlan, first_shard: int) -> None:
    """Record the stage before its first shard is written."""
    if not any(stage.first_shard == first_shard for stage in plan.stages):
        plan.stages.append(Stage(job.stage.inputs, job.stage.limit_documents, first_shard))
        plan.save(job.out)


def _write(
    job: EncodeJob, shard: CutShard, futures: Sequence[Future[EncodedBatch]], advance: Callable[[int], None], written: Written
) -> None:
    assert shard.documents is not None
    batches = []
    for future in futures:
        batches.append(future.result())
        advance(len(batches[-1].n_tokens))
    z_SD = np.concatenate([batch.vectors for batch in batches] or [np.zeros((0, job.info.fingerprint["dim"]), np.float16)])
    n_tokens = np.concatenate([batch.n_tokens for batch in batches] or [np.zeros(0, np.int32)])
    truncated = np.concatenate([batch.truncated for batch in batches] or [np.zeros(0, bool)])
    codes = [batch.residual for batch in batches if batch.residual is not None]
    residual = {name: np.concatenate([some[name] for some in codes]) for name in codes[0]} if codes else None
    how = {"residual": residual, "keep_text": job.plan.keep_text, "writer": job.writer}
    write_shard(job.out, shard.index, shard.documents, z_SD, n_tokens, truncated, **how)
    written.sentences += len(z_SD)
    written.shards += 1


def _say_plan(job: EncodeJob, first: CutShard, n_passed: int, pool: EncodingPool, segmenting_seconds: float) -> int | None:
    """Print the plan with a measured estimate; returns the estimated number of sentences still to encode."""
    assert first.documents is not None
    if job.quiet:
        return None
    info = job.info
    dim = int(info.fingerprint["dim"])
    say(f"encode-corpus → {job.out}")
    say(f"  encoder  {layout.encoder_line(info.fingerprint)}, at most {info.fingerprint['max_tokens']} tokens a sentence")
    say(f"  device   {info.device} ({info.why}); {job.n_workers} workers")
    if job.plan.residual:
        say(f"  residual {layout.residual_line(job.plan.residual)}")
    if n_passed:
        say(f"  resume   {n_passed} finished shards are kept")
    rows = max(first.n_sentences, 1)
    characters = sum(document.n_characters for document in first.documents)
    text_bytes = sum(len(sentence.text.encode()) for document in first.documents for sentence in document.sentences)
    total = None
    if job.expected_bytes and job.stage.limit_documents is None:
        total = max(round(job.expected_bytes * rows / max(text_bytes, 1)) - n_passed * job.plan.shard_rows, rows)
        code_bytes = job.plan.residual["dims"] * job.plan.residual["bits"] / 8 + 12 if job.plan.residual else 0
        row_bytes = 2 * dim + code_bytes + (text_bytes / rows * 0.5 if job.plan.keep_text else 0) + 8
        free = shutil.disk_usage(job.out).free
        say(f"  to write about {total * row_bytes / 2**20:,.0f} MiB ({free / 2**20:,.0f} MiB free)")
    texts, before = _texts(first, job.plan)
    # Segmentation runs in this one process: with a fast encoder it sets the pace.
    rate = min(pool.probe(texts, before).result() * job.n_workers, rows / max(segmenting_seconds, 1e-9)) if texts else 1.0
    say(f"  rows     {rows:,} sentences of {characters / rows:.0f} characters in the first shard; {job.plan.shard_rows:,} a shard")
    expected = f"about {total:,} sentences, {duration(total / rate)}" if total else "total unknown"
    say(f"  time     {rate:,.0f} sentences/s expected, measured on a few; {expected}")
    return total


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
        "sentences_per_second": round(written.sentences / written.encoding_seconds, 1) if written.encoding_seconds else None,
        "elapsed_seconds": round(elapsed_seconds, 3),
    }
