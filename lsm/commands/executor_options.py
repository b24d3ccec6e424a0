"""Options of a verb whose work may be divided into tasks: who runs them, and what a scheduler reserves for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lsm.config import CommonOptions

if TYPE_CHECKING:
    from lsm.encode.datatrove_executors import Resources


@dataclass(kw_only=True)
class ExecutorOptions(CommonOptions):
    """Who runs the tasks, and what each is given."""

    executor: Literal["local", "datatrove-local", "slurm", "ray"] = "local"
    """local = this process and its workers. The others run --tasks of them through datatrove (lsm[datatrove]): as processes of this
    machine, as Slurm jobs, or on a Ray cluster (lsm[ray]; RAY_ADDRESS, else this machine). The corpus is the same (docs/clusters.md)."""
    tasks: int = 1
    """Tasks that encode; each reads the whole input and encodes every so manieth shard. May change from call to call."""
    memory_gb: int = 2
    """GiB reserved for each process of a task (slurm, ray)."""
    partition: str = ""
    """Slurm partition."""
    time: str = "24:00:00"
    """Time limit of a Slurm job."""
    sbatch: tuple[str, ...] = ()
    """Further #SBATCH lines, as KEY=VALUE (account=abc qos=long)."""
    dry_run: bool = False
    """Write the Slurm scripts and say where they are, but submit nothing."""

    def require_fitting(self) -> None:
        """Raise `UserError` for values that do not fit together, or an executor that is not installed."""
        from importlib.util import find_spec

        from lsm.errors import UserError, missing_extra

        problems = [f"--{name} {getattr(self, name)}: must be at least 1" for name in ("tasks", "memory_gb") if getattr(self, name) < 1]
        problems += [f"--sbatch {line}: write KEY=VALUE, without dashes" for line in self.sbatch if line.startswith("-") or "=" not in line]
        if self.executor == "local" and self.tasks != 1:
            problems.append(f"--tasks {self.tasks} needs --executor datatrove-local, slurm or ray")
        if self.executor == "slurm" and not self.partition:
            problems.append("--executor slurm needs --partition")
        if self.executor != "slurm":
            alone = [name for name in ("partition", "time", "sbatch", "dry_run") if getattr(self, name) != getattr(ExecutorOptions, name)]
            problems += [f"--{name.replace('_', '-')} belongs to --executor slurm" for name in alone]
        if self.executor not in ("slurm", "ray") and self.memory_gb != ExecutorOptions.memory_gb:
            problems.append("--memory-gb belongs to --executor slurm and ray")
        if problems:
            raise UserError("; ".join(problems).replace("memory_gb", "memory-gb"))
        if self.executor != "local" and find_spec("datatrove") is None:
            raise missing_extra("datatrove", "datatrove")
        if self.executor == "ray" and find_spec("ray") is None:
            raise missing_extra("ray", "ray")

    def resources(self, cpus: int) -> Resources:
        """What each task is given, when it runs `cpus` processes. A GPU is reserved where --device names one."""
        from lsm.encode.datatrove_executors import Resources

        return Resources(
            cpus=cpus,
            memory_gb=self.memory_gb,
            gpus=int(self.device.startswith("cuda")),
            partition=self.partition,
            time=self.time,
            sbatch={key: value for key, _, value in (line.partition("=") for line in self.sbatch)},
        )
