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
        plan, n_finished = _opened(job)
        cutter = _cutter(job, plan, n_finished)
        written = _Written()
        n_shards = cutter.first_shard
        with EncodingPool(job.n_workers, job.info.name, device=job.info.device, precision=job.precision, load_coder=job.load_coder) as pool:
            try:
                n_shards += _encode_shards(job, plan, cutter, pool, documents, written)
            except WorkerDied as error:
                raise UserError(
                    f"a worker process died (out of memory?) while encoding into {job.out}; finished shards are kept: "
                    f"run the same command again, with fewer --workers than {job.n_workers}"
                ) from error
        n_shards = max(n_shards, n_finished)
        if n_shards == 0:
            raise UserError(f"the input holds no text ({cutter.n_blank} blank documents); nothing to encode")
        nothing_to_do = not written.sentences and n_finished == n_shards
        if nothing_to_do:
            manifest = read_json(job.out / layout.MANIFEST)
        else:
            manifest = write_manifest(job.out, n_shards, plan.encoder, plan.segmentation, residual=plan.residual, keep_text=plan.keep_text)
    if nothing_to_do:
        say(f"nothing to do: {job.out} holds all {manifest['n_documents']:,} documents", quiet=job.quiet)
    return _results(job, manifest, cutter, written, time.monotonic() - start)


@dataclass
class _Written:
    sentences: int = 0
    shards: int = 0
    encoding_seconds: float = 0.0


def _opened(job: EncodeJob) -> tuple[RunPlan, int]:
    """The plan to go on with (compared with what is on disk) and the number of shards in the manifest."""
    on_disk = RunPlan.load(job.out)
    if on_disk is None:
        strangers = [path.name for path in job.out.iterdir() if path.name != LOCK and not path.name.endswith(TEMPORARY_SUFFIX)]
        if layout.DERIVED in strangers:
            raise UserError(
                f"--out {job.out} was made by lsm corpus; encode into another folder, and put the two together: lsm corpus merge"
            )
        if strangers:
            raise UserError(f"--out {job.out} is neither empty nor a corpus (it holds {strangers[0]}); choose another folder")
        if job.resume == "must":
            raise UserError(f"--resume must: {job.out} holds no run to go on with; use --resume auto")
    elif job.resume == "never" and not job.append:
        raise UserError(f"--resume never: {job.out} holds a corpus already; use --resume auto, or choose another --out")
    if on_disk is not None:
        on_disk.require_same(job.plan, job.out)
    for folder in (job.out, job.out / layout.SHARDS):
        if folder.is_dir():
            remove_leftovers(folder)
    manifest = job.out / layout.MANIFEST
    n_finished = len(read_json(manifest)["shards"]) if manifest.exists() else 0
    return on_disk or job.plan, n_finished


def _cutter(job: EncodeJob, plan: RunPlan, n_finished: int) -> Cutter:
    """Decide which stage this call belongs to: a new one, one that was interrupted, or a finished one to check."""
    first, stop = 0, None
    known: dict[str, str] = {}
    if plan.stages:
        last = plan.stages[-1]
        present = [read_done(job.out, index) is not None for index in range(n_finished)]
        unfinished = n_finished <= last.first_shard or not all(present[last.first_shard :])
        if unfinished and (job.append or len(plan.stages) > 1) and last.inputs != job.stage.inputs:
            raise UserError(
                f"{job.out}: an earlier call with {', '.join(last.inputs)} is unfinished; run that command again first, then this one"
            )
        if job.append:
            first = last.first_shard if unfinished else n_finished
            for index in range(first):
                known.update(finished_documents(job.out, index))
        elif n_finished > last.first_shard or len(plan.stages) > 1:
            stop = plan.stages[1].first_shard if len(plan.stages) > 1 else n_finished
    return Cutter(job.out, job.segment, plan.shard_rows, first, stop, known)


def _encode_shards(
    job: EncodeJob, plan: RunPlan, cutter: Cutter, pool: EncodingPool, documents: Iterable[DocumentLike], written: _Written
) -> int:
    """Encode what is missing; returns the number of shards of this stage."""
    pending: deque[tuple[CutShard, list[Future[EncodedBatch]]]] = deque()
    n_shards = 0
    begin = time.monotonic()
    with ExitStack() as stack:
        progress: Progress | None = None
        for shard in cutter.shards(documents):
            n_shards += 1
            if shard.documents is None:
                continue
            if progress is None:
                _begin_stage(job, plan, cutter)
                total = _say_plan(job, shard, n_shards - 1, pool, cutter.segmenting_seconds)
                progress = stack.enter_context(Progress("encode", total, "sentences", quiet=job.quiet))
                begin = time.monotonic()
            texts, before = _texts(shard, plan)
            pending.append((shard, [pool.encode(texts[rows], before and before[rows]) for rows in windows(len(texts), plan.window_rows)]))
            while pending and (len(pending) >= job.n_workers + 2 or all(future.done() for future in pending[0][1])):
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


def _begin_stage(job: EncodeJob, plan: RunPlan, cutter: Cutter) -> None:
    """Record the stage before its first shard is written."""
    if not any(stage.first_shard == cutter.first_shard for stage in plan.stages):
        plan.stages.append(Stage(job.stage.inputs, job.stage.limit_documents, cutter.first_shard))
        plan.save(job.out)


def _write(
    job: EncodeJob, shard: CutShard, futures: Sequence[Future[EncodedBatch]], advance: Callable[[int], None], written: _Written
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
    write_shard(job.out, shard.index, shard.documents, z_SD, n_tokens, truncated, residual=residual, keep_text=job.plan.keep_text)
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


def _results(job: EncodeJob, manifest: dict[str, Any], cutter: Cutter, written: _Written, elapsed_seconds: float) -> dict[str, Any]:
    n_bytes = sum(file.stat().st_size for file in job.out.rglob("*") if file.is_file())
    counts = {key: manifest[key] for key in ("n_documents", "n_sentences", "n_characters", "n_tokens", "n_truncated")}
    return {
        "corpus": str(job.out),
        **counts,
        "n_shards": len(manifest["shards"]),
        "n_sentences_written": written.sentences,
        "n_blank_documents": cutter.n_blank,
        "n_documents_present_before": cutter.n_known,
        "n_documents_mended": cutter.n_mended,
        "encoder": manifest["encoder"],
        "corpus_bytes": n_bytes,
        "workers": job.n_workers,
        "device": job.info.device,
        "sentences_per_second": round(written.sentences / written.encoding_seconds, 1) if written.encoding_seconds else None,
        "elapsed_seconds": round(elapsed_seconds, 3),
    }
