"""The tasks of an encoding job through datatrove: as processes of this machine, on Ray, or as Slurm jobs.

datatrove's own markers of finished tasks are left unread (`skip_completed=False`): every task looks at the shards themselves.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datatrove.executor.ray
import datatrove.executor.slurm
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.logging import logger

from lsm.encode.tasks import EncodeStep, FinishStep
from lsm.encode.worker import die_with
from lsm.errors import UserError, missing_extra


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a scheduler reserves for each task."""

    cpus: int
    memory_gb: int
    """For each CPU, in GiB."""
    gpus: int = 0
    partition: str = ""
    time: str = ""
    sbatch: dict[str, str] | None = None


def run_local(step: EncodeStep) -> None:
    """Run every task as a process of this machine, all at once; returns when all have ended, however they did."""
    _LocalTasks([step], tasks=step.team.n_tasks, skip_completed=False, logging_dir=str(step.team.folder / "datatrove")).run()


def run_ray(step: EncodeStep, resources: Resources) -> None:
    """Run every task on the Ray cluster that is there (`RAY_ADDRESS`, or one on this machine), else on this machine alone."""
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = not ray.is_initialized()
    logger.disable("datatrove")  # in this process; the tasks log into their folder
    try:
        if ours:
            with _handler_kept(signal.SIGTERM):
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        _require_room(ray.cluster_resources(), resources)
        executor = RayPipelineExecutor(
            [step], tasks=step.team.n_tasks, skip_completed=False, logging_dir=str(step.team.folder / "datatrove"),
            cpus_per_task=resources.cpus, mem_per_cpu_gb=resources.memory_gb, gpus_per_task=resources.gpus,
        )  # fmt: skip
        with _replaced(datatrove.executor.ray, "RankWorker", _TaskActor):
            executor.run()
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster at {os.environ.get('RAY_ADDRESS', 'this machine')}: {error}; start it, or unset RAY_ADDRESS"
        ) from error
    finally:
        logger.enable("datatrove")
        if ours:
            ray.shutdown()


def submit_slurm(step: EncodeStep, last: FinishStep, resources: Resources, *, dry_run: bool = False) -> list[Path]:
    """Submit an array of the tasks, and a job that writes the manifest when all of them have ended; the two scripts.

    Args:
        dry_run: write the scripts, and the files that they read, but submit nothing.

    Raises:
        UserError: there is no sbatch here, or it refused the script.
    """
    common = {
        "skip_completed": False, "time": resources.time, "partition": resources.partition, "sbatch_args": resources.sbatch, "qos": "",
        "mem_per_cpu_gb": resources.memory_gb, "env_command": f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
    }  # fmt: skip
    folders = [step.team.folder / name for name in ("encode", "finish")]
    encode = _SlurmJob(
        [step], tasks=step.team.n_tasks, cpus_per_task=resources.cpus, gpus_per_task=resources.gpus, job_name="lsm-encode",
        logging_dir=str(folders[0]), **common,
    )  # fmt: skip
    finish = _SlurmJob(
        [last], tasks=1, job_name="lsm-finish", logging_dir=str(folders[1]), depends=encode, run_on_dependency_fail=True, **common
    )  # fmt: skip
    try:
        if dry_run:
            with _replaced(datatrove.executor.slurm, "launch_slurm_job", lambda *_: "JOB"):
                finish.launch_job()
        else:
            finish.launch_job()
    except FileNotFoundError as error:
        raise UserError("--executor slurm: there is no sbatch here; call it where jobs are submitted, or with --dry-run") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"sbatch refused the job (exit code {error.returncode}; what it said stands above); mend the options") from error
    return [folder / "launch_script.slurm" for folder in folders]


class _LocalTasks(LocalPipelineExecutor):
    """datatrove's local executor with processes of its own: the pool it uses waits for ever for a task that was killed."""

    def run(self) -> None:
        context = get_context("spawn")
        processes = [context.Process(target=_run_rank, args=(self, rank, os.getpid())) for rank in range(self.tasks)]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                    process.join()  # only then has it left the corpus


def _run_rank(executor: _LocalTasks, rank: int, parent: int) -> None:
    die_with(parent)
    executor._run_for_rank(rank, local_rank=1)


class _TaskActor:
    """datatrove's Ray actor, encoding in its own process: the pool it uses there waits for ever for a task that was killed, while Ray
    notices an actor that died, and datatrove starts it again (three times)."""

    def get_node_ip(self) -> str:
        import ray

        return ray.util.get_node_ip_address()

    def run_for_rank(self, executor_ref: RayPipelineExecutor, ranks: list[int], node_ips: list[str], node_idx: int) -> Any:
        os.environ["RAY_NODELIST"] = ",".join(node_ips)
        (rank,) = ranks
        return executor_ref._run_for_rank(rank, local_rank=1)


class _SlurmJob(SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """Our steps keep no statistics of datatrove's kind, and its job for them would be one more in the queue."""


def _require_room(there: dict[str, float], resources: Resources) -> None:
    """Raise `UserError` when no task could ever start: Ray would wait for ever."""
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.cpus * resources.memory_gb * 2**30}
    short = [f"{name} {there.get(name, 0):,.0f}, not {value:,}" for name, value in wanted.items() if value > there.get(name, 0)]
    if short:
        raise UserError(f"Ray has too little for one task: {'; '.join(short)}; lower --workers or --memory-gb")


@contextmanager
def _handler_kept(number: signal.Signals) -> Iterator[None]:
    """Ray puts a handler of its own in its place, which aborts."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
