"""The run folder: who it belongs to, its checkpoints, and which of them is whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from lsm.config import to_dict, to_yaml
from lsm.errors import UserError
from lsm.files import DONE_MARKER, atomic_folder, atomic_write, fingerprint, read_json, sha256_file, write_json
from lsm.training.settings import TrainingSettings

Resume = Literal["auto", "never", "must"]
FINAL = "final"
_NO_PART_OF_THE_RESULT = ("save_every", "keep_checkpoints")


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


def save_checkpoint(out: Path, step: int, tensors: dict[str, dict[str, Tensor]], *, keep: int) -> Path:
    """Write `step-00001000/` atomically, one safetensors file per entry of `tensors`, then delete all but the `keep` newest."""
    path = out / f"step-{step:08d}"
    with atomic_folder(path) as folder:
        for name, state in tensors.items():
            save_file(state, folder / f"{name}.safetensors")
        write_json(folder / "state.json", {"step": step})
        mark_done(folder)
    for old in _checkpoints(out)[:-keep]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: Path) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """The step and the tensors that `save_checkpoint` wrote.

    Raises:
        UserError: a file differs from the sum recorded when it was written.
    """
    for name, recorded in read_json(path / DONE_MARKER)["sha256"].items():
        file = path / name
        if not file.exists() or sha256_file(file) != recorded:
            raise UserError(f"checkpoint file {file} is damaged; delete {path} to resume from the checkpoint before it")
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return read_json(path / "state.json")["step"], tensors


def latest_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint; one without its marker does not exist."""
    return next(iter(reversed(_checkpoints(out))), None)


def mark_done(folder: Path) -> None:
    """Write the marker with the sha256 of every file in `folder`; the last thing that happens to it."""
    sums = {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    write_json(folder / DONE_MARKER, {"sha256": sums})


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
