"""The run folder: who it belongs to, its checkpoints, and which of them is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from lsm.config import to_dict, to_yaml
from lsm.errors import UserError
from lsm.files import DONE_MARKER, TEMPORARY_SUFFIX, atomic_folder, atomic_write, fingerprint, read_json, sha256_file, write_json
from lsm.training.distributed import ALONE, Ranks
from lsm.training.parallel import is_sharded
from lsm.training.settings import TrainingSettings

Tensors = dict[str, dict[str, Tensor]]
Resume = Literal["auto", "never", "must"]
FINAL = "final"
_NO_PART_OF_THE_RESULT = ("save_every", "keep_checkpoints", "sharding", "checkpoint_activations", "compile")


def open_run(out: Path, settings: TrainingSettings, inputs: dict[str, Any], *, seed: int, resume: Resume) -> None:
    """Make the run folder, or check that the one there was started with the same settings, seed and inputs.

    Writes `config.yaml` (the settings, fit for `--config`) and `run.json` (settings, seed, inputs and their fingerprint).

    Raises:
        UserError: `out` belongs to another run (both fingerprints and the differing keys are named), or `resume` forbids what is found.
    """
    described = {"settings": to_dict(settings), "seed": seed, "inputs": inputs}
    for name in _NO_PART_OF_THE_RESULT:
        described["settings"].pop(name)
    described["fingerprint"] = fingerprint(described)
    record = out / "run.json"
    if record.exists():
        if resume == "never":
            raise UserError(f"{out} already holds a run; give another --out, or --resume auto to go on with it")
        before = read_json(record)
        if before.get("fingerprint") != described["fingerprint"]:
            raise UserError(
                f"{out} was started with other settings or data (fingerprint {before.get('fingerprint')}, now {described['fingerprint']}): "
                f"{_differences(before, described)}; give another --out, or repeat the settings in {out / 'config.yaml'}"
            )
        return
    if resume == "must":
        raise UserError(f"--resume must: {out} holds no run; leave the option out to start one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a run; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "config.yaml", "w") as handle:
        handle.write(to_yaml(settings))
    write_json(record, described)


def save_checkpoint(out: Path, step: int, tensors: Tensors, *, keep: int, ranks: Ranks = ALONE) -> Path:
    """Write `step-00001000/` atomically, one safetensors file per entry of `tensors`, then delete all but the `keep` newest.

    With sharded tensors an entry becomes a folder, in which each process writes its own part (torch.distributed.checkpoint, as
    safetensors: its default format would be unpickled when read).
    """
    path = out / f"step-{step:08d}"
    sharded = any(is_sharded(value) for state in tensors.values() for value in state.values())
    with atomic_folder(path) if ranks.is_first else nullcontext(path.with_name(path.name + TEMPORARY_SUFFIX)) as folder:
        ranks.barrier()  # until the folder is there
        for name, state in tensors.items():
            if sharded:
                writer = HuggingFaceStorageWriter(str(folder / name), save_distributed=True)
                dcp.save(_flat_scalars(state), storage_writer=writer)
            elif ranks.is_first:
                save_file(state, folder / f"{name}.safetensors")
        if ranks.is_first:
            write_json(folder / "state.json", {"step": step})
            mark_done(folder)
    if ranks.is_first:
        for old in _checkpoints(out)[:-keep]:
            shutil.rmtree(old)
    ranks.barrier()
    return path


def load_checkpoint(path: Path, places: Callable[[], Tensors]) -> tuple[int, Tensors]:
    """The step and the tensors that `save_checkpoint` wrote, in whatever number of processes.

    Args:
        places: makes tensors that a sharded checkpoint is read into, each process its own part.

    Raises:
        UserError: a file differs from the sum recorded when it was written.
    """
    for name, recorded in read_json(path / DONE_MARKER)["sha256"].items():
        file = path / name
        if not file.exists() or sha256_file(file) != recorded:
            raise UserError(f"checkpoint file {file} is damaged; delete {path} to resume from the checkpoint before it")
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    if not tensors:
        tensors = places()
        for name, state in tensors.items():
            dcp.load(_flat_scalars(state), storage_reader=HuggingFaceStorageReader(str(path / name)), no_dist=True)
    return read_json(path / "state.json")["step"], tensors


def latest_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint; one without its marker does not exist."""
    return next(iter(reversed(_checkpoints(out))), None)


def mark_done(folder: Path) -> None:
    """Write the marker with the sha256 of every file in `folder`; the last thing that happens to it."""
    sums = {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    write_json(folder / DONE_MARKER, {"sha256": sums})


def _flat_scalars(state: dict[str, Tensor]) -> dict[str, Any]:
    """The same memory with scalars as vectors of one element, whose places torch.distributed.checkpoint can name."""
    return {name: value.view(1) if value.ndim == 0 else value for name, value in state.items()}


def _checkpoints(out: Path) -> list[Path]:
    return sorted(path for path in out.glob("step-*") if (path / DONE_MARKER).exists())


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = _flat(before), _flat(now)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key != "fingerprint")
    listed = [f"{key.removeprefix('settings.')} {old.get(key)} → {new.get(key)}" for key in keys[:6]]
    return ", ".join(listed) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{path}.{name}" if path else str(name)).items()}
