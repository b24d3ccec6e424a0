"""One corpus by many tasks: each reads the whole input and encodes every n-th shard; the last step joins their shards.

Which shards there are is a function of input and settings alone, and a shard is written by whoever comes to it, under a name of its
own, and renamed. So a task that died is mended by any later call, with any number of tasks. What a task says of the whole input (a
digest over the content of all its shards) is compared between tasks and with what lies on disk before a manifest is written.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lsm.corpus import format as layout
from lsm.corpus.writer import content_sha256, read_done, write_manifest
from lsm.encode.cut import CutShard, Cutter, DocumentLike
from lsm.encode.plan import RunPlan
from lsm.encode.run import (
    EncodeJob,
    Written,
    begin_stage,
    encode_missing,
    find_stage,
    make_cutter,
    n_in_manifest,
    no_text,
    open_plan,
    remove_half_written,
    results_of,
)
from lsm.errors import UserError
from lsm.files import read_json, write_json
from lsm.lock import only_writer, writer_of_job
from lsm.progress import silenced

_PATIENCE_SECONDS = 120.0
"""How long a task waits while another one begins the job: that one reads every finished shard's marker."""
_AGAIN = "finished shards are kept: run the same command again"

Prepare = Callable[[], tuple[EncodeJob, Iterable[DocumentLike]]]
"""Makes the job and reads its input, in the process that encodes; pickled, so a function of a module and plain values."""


@dataclass(frozen=True)
class Team:
    """The tasks of one call, and the folder, seen by all of them, where they leave word."""

    folder: Path
    n_tasks: int

    @classmethod
    def new(cls, corpus: Path, n_tasks: int) -> Team:
        """A team with a folder of its own, beside the corpus."""
        corpus = Path(os.path.abspath(corpus))  # noqa: PTH100 (resolve would follow a link to another disk)
        folder = corpus.with_name(corpus.name + ".tasks") / secrets.token_hex(4)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot make {folder}, where the tasks leave word: {error.strerror}; choose another --out") from error
        return cls(folder, n_tasks)

    @property
    def job(self) -> str:
        """Name of the call, unlike that of any other."""
        return self.folder.name

    def report(self, rank: int) -> Path:
        """Where task `rank` says what it read, or why it stopped."""
        return self.folder / f"task-{rank:05d}.json"

    @property
    def stage(self) -> Path:
        """Where the job's first and last shard are noted when it begins: both could look different while tasks write."""
        return self.folder / "stage.json"


@dataclass(frozen=True)
class _Report:
    n_shards: int
    content_sha256: str
    counts_of_input: dict[str, int]
    written: dict[str, Any]
    workers: int
    device: str


@dataclass(frozen=True)
class EncodeStep:
    """A step of a datatrove pipeline: encodes the shards of one task."""

    prepare: Prepare
    team: Team
    folder: Path
    """Where the command was called: inputs may be named from there."""
    fails: bool = False
    """Whether a fault also ends the process with exit code 2 (for a scheduler to see), after it was reported."""

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        assert world_size == self.team.n_tasks
        os.chdir(self.folder)
        self.team.report(rank).unlink(missing_ok=True)
        try:
            with silenced(rank != 0):
                job, documents = self.prepare()
                run_task(job, documents, self.team, rank)
        except UserError as error:
            write_json(self.team.report(rank), {"error": str(error)})
            _leave(error, self.fails)


@dataclass(frozen=True)
class FinishStep:
    """The step of a datatrove pipeline that comes after all tasks: writes the manifest."""

    corpus: Path
    team: Team
    folder: Path
    summary: Callable[[dict[str, Any]], str]
    """Results → what is printed of them."""

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        os.chdir(self.folder)
        try:
            print(self.summary(finish(self.corpus, self.team)), flush=True)
        except UserError as error:
            _leave(error, fails=True)


def begin(job: EncodeJob, team: Team) -> None:
    """Before the first task, alone with the folder: check the plan, clear what was left half-written, record the stage."""
    if team.stage.exists():  # all tasks of the job had left and one comes back
        remove_half_written(job.out)
        return
    plan, n_finished = open_plan(job)
    first, stop = find_stage(job, plan, n_finished)
    begin_stage(job, plan, first)
    write_json(team.stage, {"first_shard": first, "stop_shard": stop})


def run_task(job: EncodeJob, documents: Iterable[DocumentLike], team: Team, rank: int) -> None:
    """Encode what is missing of the shards whose number leaves `rank` when divided by the number of tasks, and report.

    Raises:
        UserError: as `encode_corpus`, or another job writes there. Finished shards are kept.
    """
    job = replace(job, resume="auto", quiet=True, writer=f"{rank}-{secrets.token_hex(4)}")
    with writer_of_job(job.out, team.job, lambda: begin(job, team), patience_seconds=_PATIENCE_SECONDS):
        plan = RunPlan.load(job.out)
        if plan is None:
            raise UserError(f"{job.out / layout.PLAN} has gone while tasks were running; run the same command again")
        plan.require_same(job.plan, job.out)
        stage = read_json(team.stage)
        cutter = make_cutter(job, plan, stage["first_shard"], stage["stop_shard"])
        digest = hashlib.sha256()
        n_shards, written = encode_missing(job, plan, cutter, _share(cutter, documents, team, rank, digest.update))
    report = _Report(n_shards, digest.hexdigest(), cutter.counts(), asdict(written), job.n_workers, job.info.device)
    write_json(team.report(rank), asdict(report))


def finish(corpus: Path, team: Team, *, elapsed_seconds: float = 0.0) -> dict[str, Any]:
    """Write the manifest, when every task has reported the same input and every shard is there.

    Returns:
        What `encode_corpus` returns, over all tasks.

    Raises:
        UserError: a task stopped or died, read another input than the others, or a shard is missing; nothing was written then.
    """
    with only_writer(corpus):
        remove_half_written(corpus)
        plan, n_finished = RunPlan.load(corpus), n_in_manifest(corpus)
        try:
            reports = _reports(team)
            assert plan is not None and plan.stages
            first = read_json(team.stage)["first_shard"]
            _require_whole(corpus, team, first, reports[0])
        finally:
            if plan is not None:
                _withdraw_empty_stage(corpus, plan, n_finished)
        n_shards = max(first + reports[0].n_shards, n_finished)
        if n_shards == 0:
            raise no_text(reports[0].counts_of_input["n_blank_documents"])
        how = {"residual": plan.residual, "keep_text": plan.keep_text}
        manifest = write_manifest(corpus, n_shards, plan.encoder, plan.segmentation, **how)
    written = Written(
        sum(report.written["sentences"] for report in reports),
        sum(report.written["shards"] for report in reports),
        max(report.written["encoding_seconds"] for report in reports),
    )
    workers = sum(report.workers for report in reports)
    how = {"workers": workers, "device": reports[0].device, "elapsed_seconds": elapsed_seconds}
    return results_of(corpus, manifest, reports[0].counts_of_input, written, **how)


def _share(
    cutter: Cutter, documents: Iterable[DocumentLike], team: Team, rank: int, advance: Callable[[bytes], None]
) -> Iterator[CutShard]:
    """Every shard, with documents only where this task must encode it; `advance` takes each one's content."""
    for shard in cutter.shards(documents):
        if shard.documents is None:
            advance(_content_on_disk(cutter.corpus, shard.index))
            yield shard
            continue
        advance(content_sha256((document.doc_id, document.text_sha256) for document in shard.documents).encode())
        yield shard if shard.index % team.n_tasks == rank else replace(shard, documents=None)


def _reports(team: Team) -> list[_Report]:
    """Of every task, in order; they agree on the input."""
    found = {rank: read_json(team.report(rank)) for rank in range(team.n_tasks) if team.report(rank).exists()}
    for rank, report in found.items():
        if "error" in report:
            raise UserError(f"task {rank} of {team.n_tasks}: {report['error']}")
    silent = [rank for rank in range(team.n_tasks) if rank not in found]
    if silent:
        names = ", ".join(map(str, silent[:8])) + (" …" if len(silent) > 8 else "")
        raise UserError(
            f"{'tasks' if len(silent) > 1 else 'task'} {names} of {team.n_tasks} ended without an answer (killed, out of memory?); "
            f"{_AGAIN} (logs: {team.folder})"
        )
    reports = [_Report(**found[rank]) for rank in range(team.n_tasks)]
    for rank, report in enumerate(reports):
        mine, first = ((one.n_shards, one.content_sha256) for one in (report, reports[0]))
        if mine != first:
            raise UserError(
                f"tasks 0 and {rank} of {team.n_tasks} read different input [{first[1][:16]}, {mine[1][:16]}]: "
                "let all of them see the same files, change none while they run, and run the same command again"
            )
    return reports


def _require_whole(corpus: Path, team: Team, first: int, report: _Report) -> None:
    shards = range(first, first + report.n_shards)
    missing = [index for index in shards if read_done(corpus, index) is None]
    if missing:
        raise UserError(
            f"{corpus}: {len(missing)} of {len(shards)} shards are missing (the first: {layout.shard_name(missing[0])}, "
            f"of task {missing[0] % team.n_tasks}); {_AGAIN}"
        )
    digest = hashlib.sha256()
    for index in shards:
        digest.update(_content_on_disk(corpus, index))
    if digest.hexdigest() != report.content_sha256:
        raise UserError(
            f"{corpus}: its shards were made of other input [{digest.hexdigest()[:16]}] than the tasks read "
            f"[{report.content_sha256[:16]}]; run the same command again: it names the shard"
        )


def _content_on_disk(corpus: Path, index: int) -> bytes:
    done = read_done(corpus, index)
    if done is None:
        raise UserError(f"{layout.shard_folder(corpus, index)} has gone while tasks were running; run the same command again")
    return str(done["content_sha256"]).encode()


def _withdraw_empty_stage(corpus: Path, plan: RunPlan, n_finished: int) -> None:
    """Take back a stage that was recorded in advance and has no shard: its input was all known, blank, or refused at once."""
    last = plan.stages[-1] if plan.stages else None
    if last is None or n_finished > last.first_shard:
        return
    shards = corpus / layout.SHARDS
    if shards.is_dir() and any(int(folder.name) >= last.first_shard for folder in shards.iterdir() if folder.name.isdecimal()):
        return
    plan.stages.pop()
    if plan.stages:
        plan.save(corpus)
    else:
        (corpus / layout.PLAN).unlink()


def _leave(error: UserError, fails: bool) -> None:
    if fails:
        print(f"lsm: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        raise SystemExit(2)
