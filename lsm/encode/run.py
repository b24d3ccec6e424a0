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
from lsm.corpus.writer import write_shard
from lsm.encode.contextual import texts_before
from lsm.encode.cut import CutShard, Cutter, DocumentLike, Segment
from lsm.encode.encoder import EncodedBatch, EncoderInfo, Precision
from lsm.encode.finished import Written, finished_manifest, results_of
from lsm.encode.plan import Resume, RunPlan, Stage, windows
from lsm.encode.resume import Opened, cutter_of, new_stage, open_corpus
from lsm.encode.stages import StageSeconds
from lsm.encode.worker import EncodingPool, LoadCoder, WorkerDied
from lsm.errors import UserError
from lsm.lock import only_writer
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
        opened = open_corpus(job.out, job.plan, resume=job.resume, append=job.append, threads=job.n_workers, quiet=job.quiet)
        cutter = cutter_of(opened, job.out, job.segment, job.stage.inputs, append=job.append)
        n_shards, written = encode_missing(job, opened, cutter, cutter.shards(documents))
        manifest = finished_manifest(
            job.out, opened, cutter.counts(), first_shard=cutter.first_shard, n_shards_of_stage=n_shards, n_shards_written=written.shards,
            damaged=opened.damaged, quiet=job.quiet,
        )  # fmt: skip
    how = {"workers": job.n_workers, "device": job.info.device, "elapsed_seconds": time.monotonic() - start}
    return results_of(job.out, manifest, cutter.counts(), written, **how)


def encode_missing(job: EncodeJob, opened: Opened, cutter: Cutter, shards: Iterable[CutShard]) -> tuple[int, Written]:
    """Encode those of the cutter's shards that come with documents; the number of all of them, and what was written.

    Raises:
        UserError: a worker died; finished shards are kept.
    """
    written = Written()
    how = {"device": job.info.device, "precision": job.precision, "engine": job.info.engine, "load_coder": job.load_coder}
    with EncodingPool(job.n_workers, job.info.name, **how) as pool:
        try:
            return _encode_shards(job, opened, cutter, pool, shards, written), written
        except WorkerDied as error:
            raise UserError(
                f"a worker process died (out of memory?) while encoding into {job.out}; finished shards are kept: "
                f"run the same command again, with fewer --workers than {job.n_workers}"
            ) from error


def _encode_shards(job: EncodeJob, opened: Opened, cutter: Cutter, pool: EncodingPool, shards: Iterable[CutShard], written: Written) -> int:
    plan = opened.plan
    pending: deque[tuple[CutShard, list[Future[EncodedBatch]]]] = deque()
    n_shards = 0
    stages = written.stages = StageSeconds(workers=job.n_workers)
    begin = time.monotonic()
    with ExitStack() as stack:
        progress: Progress | None = None
        for shard in shards:
            n_shards += 1
            new_stage(opened, job.stage, cutter.first_shard, job.out)  # for finished shards too, if their stage was never recorded
            if shard.documents is not None:
                if progress is None:
                    total = _say_plan(job, shard, n_shards - 1, pool, cutter.segmenting_seconds)
                    progress = stack.enter_context(Progress("encode", total, "sentences", quiet=job.quiet))
                    begin = time.monotonic()
                    stages.read, stages.split = -cutter.reading_seconds, -cutter.segmenting_seconds
                texts, before = _texts(shard, plan)
                tasks = [pool.encode(texts[rows], before and before[rows]) for rows in windows(len(texts), plan.window_rows)]
                pending.append((shard, tasks))
            while pending and (len(pending) >= job.n_workers + 2 or all(future.done() for future in pending[0][1])):
                assert progress is not None
                _write(job, *pending.popleft(), progress.advance, written)
        while pending:
            assert progress is not None
            _write(job, *pending.popleft(), progress.advance, written)
    stages.wall = time.monotonic() - begin
    stages.read += cutter.reading_seconds
    stages.split += cutter.segmenting_seconds
    return n_shards


def _texts(shard: CutShard, plan: RunPlan) -> tuple[list[str], list[str] | None]:
    """A shard's sentences, and what stands before each where the encoder reads it."""
    assert shard.documents is not None
    documents = [[sentence.text for sentence in document.sentences] for document in shard.documents]
    texts, n = [text for sentences in documents for text in sentences], int(plan.encoder.get("context_sentences", 0))
    return texts, texts_before(documents, n, longest=_CHARACTERS_A_TOKEN * int(plan.encoder["max_tokens"])) if n else None


def _write(
    job: EncodeJob, shard: CutShard, futures: Sequence[Future[EncodedBatch]], advance: Callable[[int], None], written: Written
) -> None:
    assert shard.documents is not None
    batches = []
    stages = written.stages
    for future in futures:
        with stages.counted("wait"):
            batches.append(future.result())
        stages.tokenise += batches[-1].tokenise_seconds
        stages.encode += batches[-1].encode_seconds - batches[-1].tokenise_seconds
        advance(len(batches[-1].n_tokens))
    z_SD = np.concatenate([batch.vectors for batch in batches] or [np.zeros((0, job.info.fingerprint["dim"]), np.float16)])
    n_tokens = np.concatenate([batch.n_tokens for batch in batches] or [np.zeros(0, np.int32)])
    truncated = np.concatenate([batch.truncated for batch in batches] or [np.zeros(0, bool)])
    codes = [batch.residual for batch in batches if batch.residual is not None]
    residual = {name: np.concatenate([some[name] for some in codes]) for name in codes[0]} if codes else None
    how = {"residual": residual, "keep_text": job.plan.keep_text, "writer": job.writer}
    with stages.counted("write"):
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
