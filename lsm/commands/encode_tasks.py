"""`lsm encode-corpus --executor …`: begins a job of many tasks, lets datatrove run them, and joins what they made."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm.corpus import format as layout
from lsm.corpus.writer import read_done
from lsm.encode.plan import RunPlan
from lsm.encode.resume import remove_half_written, require_resume
from lsm.encode.run import GPU_WORKERS, EncodeJob
from lsm.encode.tasks import EncodeStep, FinishStep, Prepare, Team, begin, finish
from lsm.errors import UserError
from lsm.lock import only_writer, writer_of_job
from lsm.progress import Progress, say

if TYPE_CHECKING:
    from lsm.commands.encode_corpus import Options

_PATIENCE_SECONDS = 3.0
"""Processes of a job whose first process was killed need a moment to follow it."""
_LOOK_EVERY_SECONDS = 2.0


def run_tasks(options: Options, prepare: Prepare) -> dict[str, Any]:
    """Encode by tasks on this machine or on Ray; returns when the manifest is written.

    Raises:
        UserError: as `encode_corpus`; or a task died, and the same command goes on.
    """
    from lsm.encode.datatrove_executors import run_local, run_ray

    start = time.monotonic()
    job, _ = prepare()
    team = Team.new(options.out, options.tasks)
    step = EncodeStep(prepare, team, Path.cwd())
    try:
        with writer_of_job(job.out, team.job, lambda: begin(job, team), patience_seconds=_PATIENCE_SECONDS):
            _say_plan(job, options)
            with _progress(job):
                if options.executor == "ray":
                    run_ray(step, options.resources(job.n_workers))
                else:
                    run_local(step)
        results = finish(options.out, team, elapsed_seconds=time.monotonic() - start, quiet=job.quiet)
    except KeyboardInterrupt:  # its tasks have been ended in the midst of a shard
        with contextlib.suppress(UserError), only_writer(job.out):
            remove_half_written(job.out)
        _remove(team)
        raise
    finally:
        answered = [team.report(rank).exists() for rank in range(team.n_tasks)]
        if all(answered) or not team.stage.exists():  # else its logs say more
            _remove(team)
    return results | {"executor": options.executor, "tasks": options.tasks}


def submit(options: Options, prepare: Prepare, summary: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Hand the tasks and the last step to Slurm; returns at once. The model is not looked at here: a login node may lack it, or the GPU."""
    from lsm.encode.datatrove_executors import submit_slurm

    require_resume(options.out, options.resume, append=options.append, begun=RunPlan.load(options.out) is not None)
    if not options.dry_run:  # refused now rather than when the tasks start
        with writer_of_job(options.out, "-", lambda: None, patience_seconds=_PATIENCE_SECONDS):
            pass
    team = Team.new(options.out, options.tasks)
    out = Path.cwd() / options.out
    step, last = EncodeStep(prepare, team, Path.cwd(), fails=True), FinishStep(out, team, Path.cwd(), summary)
    try:
        cpus = options.workers or (GPU_WORKERS if options.device.startswith("cuda") else 1)
        scripts = submit_slurm(
            step,
            last,
            options.resources(cpus),
            dry_run=options.dry_run,
        )
    except UserError:
        _remove(team)
        raise
    return {
        "corpus": str(options.out),
        "executor": "slurm",
        "tasks": options.tasks,
        "submitted": not options.dry_run,
        "scripts": [str(script) for script in scripts],
    }


def _say_plan(job: EncodeJob, options: Options) -> None:
    say(f"encode-corpus → {job.out}")
    say(f"  encoder  {layout.encoder_line(job.info.fingerprint)}, at most {job.info.fingerprint['max_tokens']} tokens a sentence")
    say(f"  tasks    {options.tasks} by {options.executor}, {job.n_workers} encoding processes each, {job.info.device} ({job.info.why})")


@contextlib.contextmanager
def _progress(job: EncodeJob) -> Iterator[None]:
    """Count the sentences of shards that appear, whoever writes them."""
    over = threading.Event()
    shards = job.out / layout.SHARDS

    def finished() -> set[int]:
        names = [folder.name for folder in shards.iterdir()] if shards.is_dir() else []
        return {int(name) for name in names if name.isdecimal()}

    def watch(progress: Progress) -> None:
        seen, last = finished(), False
        while not last:
            last = over.wait(_LOOK_EVERY_SECONDS)
            fresh = finished() - seen
            seen |= fresh
            progress.advance(sum(done["n_sentences"] for index in fresh if (done := read_done(job.out, index)) is not None))

    with Progress("encode", None, "sentences", quiet=job.quiet) as progress:
        thread = threading.Thread(target=watch, args=(progress,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _remove(team: Team) -> None:
    shutil.rmtree(team.folder, ignore_errors=True)
    if team.folder.parent.is_dir() and not any(team.folder.parent.iterdir()):
        team.folder.parent.rmdir()
