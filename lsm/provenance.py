"""Where a number comes from: versions, git hash, device; and the one JSON object that every verb can write."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm import __version__
from lsm.errors import UserError

if TYPE_CHECKING:
    import torch

SCHEMA = 1
_REPORTED_PACKAGES = (
    "torch", "transformers", "sentence-transformers", "tokenizers", "numpy", "pyarrow", "faiss-cpu", "sentencex", "sacrebleu",
)  # fmt: skip


def git_hash() -> str | None:
    """Short hash of the checkout that this package runs from, `+` appended when it has uncommitted changes."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in _REPORTED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def report(results: Any, *, seed: int, device: str, elapsed_seconds: float) -> dict[str, Any]:
    """The object that `--json FILE` writes."""
    return {
        "schema": SCHEMA,
        "lsm_version": __version__,
        "git": git_hash(),
        "versions": versions(),
        "machine": {"system": platform.platform(), "cpu_count": os.cpu_count()},
        "seed": seed,
        "device": device,
        "elapsed_seconds": round(elapsed_seconds, 3),
        "results": results,
    }


def choose_device(wanted: str = "auto") -> tuple[torch.device, str]:
    """The device to run on and the reason, chosen once: an explicit wish, else cuda, else mps, else cpu.

    Raises:
        UserError: the device asked for is not on this machine.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted != "auto":
        kind = wanted.split(":")[0]
        if not available.get(kind, False):
            usable = ", ".join(name for name, there in available.items() if there)
            raise UserError(f"--device {wanted}: not available here; usable: auto, {usable}")
        return torch.device(wanted), "asked for"
    for kind in ("cuda", "mps"):
        if available[kind]:
            return torch.device(kind), f"{kind} found"
    return torch.device("cpu"), "no GPU found"


def fast_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """bf16 where the hardware multiplies it natively, float32 elsewhere; and the reason."""
    import torch

    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "bf16: native on this GPU"
    if device.type == "cpu":
        capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if capability.get("avx512_bf16") or capability.get("amx_bf16") or _cpu_flags() & {"avx512_bf16", "amx_bf16"}:
            return torch.bfloat16, "bf16: native on this CPU"
    return torch.float32, f"float32: no native bf16 on this {device.type}"


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    return next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set())
