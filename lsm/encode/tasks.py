"""One corpus by many tasks: each reads the whole input and encodes every n-th shard; the last step joins their shards.

Which shards there are is a function of input and settings alone, and a shard is written by whoever comes to it, under a name of its
own, and renamed. So a task that died is mended by any later call, with any number of tasks. What a task says of the whole input (a
digest over the content of all its shards) is compared between tasks and with what lies on disk before a manifest is written.

Every file is read and compared with its hash once, when the job begins. What each task then sees of the shards depends on when it
looks (another may have mended or written some meanwhile); what it says of the input does not: a shard's content is that of the same
documents, whether they are cut now, or were compared with the input one by one.
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
from lsm.corpus.standing import ShardState
from lsm.corpus.writer import content_sha256
from lsm.encode.cut import CutShard, Cutter, DocumentLike
from lsm.encode.finished import Written, finished_manifest, results_of
from lsm.encode.resume import Opened, cutter_between, cutter_of, new_stage, open_corpus, remove_half_written, reopened
from lsm.encode.run import EncodeJob, encode_missing
from lsm.encode.stages import StageSeconds
from lsm.errors import UserError
from lsm.files import read_json, write_json
from lsm.lock import only_writer, writer_of_job
from lsm.progress import silenced

_PATIENCE_SECONDS = 120.0
"""How long a task waits for processes of another job to go."""
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
        """Where it is noted how the job began (`_Begun`): all that could look different while tasks write."""
        return self.folder / "stage.json"

    def begun(self) -> _Begun | None:
        """How the job began; None before that."""
        return _Begun(**read_json(self.stage)) if self.stage.exists() else None


@dataclass(frozen=True)
class _Begun:
    first_shard: int
    stop_shard: int | None
    damaged: list[int]
    """Shards to be made again: whoever looks later compares these alone with their hashes."""


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
    """Before the first task, alone with the folder: check plan and shards, clear what was left half-written, record the stage."""
    if team.stage.exists():  # all tasks of the job had left and one comes back
        remove_half_written(job.out)
        return
    opened = open_corpus(job.out, job.plan, resume=job.resume, append=job.append, threads=job.n_workers, quiet=job.quiet)
    cutter = cutter_of(opened, job.out, job.segment, job.stage.inputs, append=job.append)
    new_stage(opened, job.stage, cutter.first_shard, job.out)
    write_json(team.stage, asdict(_Begun(cutter.first_shard, cutter.stop_shard, opened.damaged)))


def run_task(job: EncodeJob, documents: Iterable[DocumentLike], team: Team, rank: int) -> None:
    """Encode what is missing of the shards whose number leaves `rank` when divided by the number of tasks, and report.

    Raises:
        UserError: as `encode_corpus`, or another job writes there. Finished shards are kept.
    """
    with writer_of_job(job.out, team.job, lambda: begin(job, team), patience_seconds=_PATIENCE_SECONDS):
        job = replace(job, quiet=True, writer=f"{rank}-{secrets.token_hex(4)}")
        begun = team.begun()
        assert begun is not None
        opened = reopened(job.out, suspects=begun.damaged, threads=job.n_workers)
        if opened is None:
            raise UserError(f"{job.out / layout.PLAN} has gone while tasks were running; run the same command again")
        opened.plan.require_same(job.plan, job.out)
        cutter = cutter_between(opened, job.out, job.segment, begun.first_shard, begun.stop_shard, append=job.append)
        digest = hashlib.sha256()
        n_shards, written = encode_missing(job, opened, cutter, _share(cutter, documents, team, rank, digest.update))
    report = _Report(n_shards, digest.hexdigest(), cutter.counts(), asdict(written), job.n_workers, job.info.device)
    write_json(team.report(rank), asdict(report))


def finish(corpus: Path, team: Team, *, elapsed_seconds: float = 0.0, quiet: bool = False) -> dict[str, Any]:
    """Write the manifest, when every task has reported the same input and every shard is there, unless it stands there already.

    Returns:
        What `encode_corpus` returns, over all tasks.

    Raises:
        UserError: a task stopped or died, read another input than the others, or a shard is missing; nothing was written then.
    """
    with only_writer(corpus):
        remove_half_written(corpus)
        begun = team.begun()
        opened = reopened(corpus, suspects=begun.damaged if begun else (), threads=os.cpu_count() or 1)
        try:
            reports = _reports(team)
            assert begun is not None and opened is not None
            _require_whole(corpus, opened, team, begun.first_shard, reports[0])
        finally:
            if opened is not None:
                _withdraw_empty_stage(corpus, opened)
        written = Written(stages=StageSeconds(workers=0, processes=0))
        for report in reports:
            written.sentences += report.written["sentences"]
            written.shards += report.written["shards"]
            written.stages.add(StageSeconds(**report.written["stages"]))
        counts = reports[0].counts_of_input
        manifest = finished_manifest(
            corpus, opened, counts, first_shard=begun.first_shard, n_shards_of_stage=reports[0].n_shards, n_shards_written=written.shards,
            damaged=begun.damaged, quiet=quiet,
        )  # fmt: skip
    workers = sum(report.workers for report in reports)
    how = {"workers": workers, "device": reports[0].device, "elapsed_seconds": elapsed_seconds}
    return results_of(corpus, manifest, counts, written, **how)


def _share(
    cutter: Cutter, documents: Iterable[DocumentLike], team: Team, rank: int, advance: Callable[[bytes], None]
) -> Iterator[CutShard]:
    """Every shard, with documents only where this task must encode it; `advance` takes each one's content."""
    for shard in cutter.shards(documents):
        if shard.documents is None:
            advance(_content(cutter.states[shard.index]))
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


def _require_whole(corpus: Path, opened: Opened, team: Team, first: int, report: _Report) -> None:
    shards = range(first, first + report.n_shards)
    missing = [index for index in shards if index >= len(opened.states) or opened.states[index].done is None]
    if missing:
        raise UserError(
            f"{corpus}: {len(missing)} of {len(shards)} shards are missing or damaged (the first: {layout.shard_name(missing[0])}, "
            f"of task {missing[0] % team.n_tasks}); {_AGAIN}"
        )
    digest = hashlib.sha256()
    for index in shards:
        digest.update(_content(opened.states[index]))
    if digest.hexdigest() != report.content_sha256:
        raise UserError(
            f"{corpus}: its shards were made of other input [{digest.hexdigest()[:16]}] than the tasks read "
            f"[{report.content_sha256[:16]}]; run the same command again: it names the shard"
        )


def _content(state: ShardState) -> bytes:
    assert state.done is not None
    return str(state.done["content_sha256"]).encode()


def _withdraw_empty_stage(corpus: Path, opened: Opened) -> None:
    """Take back a stage that was recorded in advance and has no shard: its input was all known, blank, or refused at once."""
    plan = opened.plan
    if not plan.stages or len(opened.states) > plan.stages[-1].first_shard:
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
