"""`lsm doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lsm.config import CommonOptions

EXTRAS = {
    "openvino": ("openvino",),
    "sat": ("wtpsplit_lite",),
    "hub-datasets": ("datasets",),
    "trackers": ("trackio", "wandb"),
    "datatrove": ("datatrove",),
    "ray": ("ray",),
}
"""Optional extra → the modules that it brings (`dev` is for those who change lsm)."""
NEEDED_FREE_BYTES = 2 << 30
"""What the assets of the quickstart, their derived files and its output take, with room to spare."""
NEEDED_MEMORY_BYTES = 3 << 30
TIMING_SECONDS = 2.0


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of `lsm doctor`."""


@dataclass(frozen=True)
class Check:
    """One line of the report; `advice` is what to do when `ok` is False."""

    name: str
    found: str
    ok: bool = True
    advice: str = ""


def run(options: Options) -> dict[str, Any]:
    """Print every check, then `ready` or what to do; exit code 0 or 2."""
    checks = []
    for check in _all_checks(options.device):
        checks.append(check)
        print(f"{'ok  ' if check.ok else 'MEND'}  {check.name:<22} {check.found}", flush=True)
    to_mend = [check for check in checks if not check.ok]
    print()
    if to_mend:
        print("not ready:")
        for check in to_mend:
            print(f"  {check.name}: {check.advice}")
    else:
        print("ready")
    return {"ready": not to_mend, "rows": [asdict(check) for check in checks], "exit_code": 2 if to_mend else 0}


def _all_checks(device: str) -> Iterator[Check]:
    yield _python()
    yield Check("platform", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield from _memory()
    yield _disk()
    yield from _dependencies()
    yield from _extras()
    yield from _torch(device)
    yield from _assets()


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    return Check("python", found, sys.version_info >= (3, 11), "make the environment with Python 3.11 or newer")


def _memory() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cores", str(cores))
    free, total = available_memory_bytes()
    if free is None or total is None:
        yield Check("memory", "unknown on this system")
        return
    advice = f"free some memory: {NEEDED_MEMORY_BYTES / 2**30:.0f} GiB are needed"
    yield Check("memory", f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f} GiB", free >= NEEDED_MEMORY_BYTES, advice)


def available_memory_bytes() -> tuple[int | None, int | None]:
    """Free and total memory for this process: the machine's, or its container's where that is less."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None, None
        return total, total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            free, total = min(free, int(limit) - used), min(total, int(limit))
    except (OSError, ValueError):
        pass
    return free, total


def _disk() -> Check:
    from lsm.assets import home

    folder = home()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Check("cache folder", f"{folder} cannot be written", False, "set LSM_HOME to a folder that can be written")
    advice = f"free some disk or set LSM_HOME elsewhere: {NEEDED_FREE_BYTES / 2**30:.0f} GiB are needed"
    return Check("cache folder", f"{folder}, {free / 2**30:.1f} GiB free", free >= NEEDED_FREE_BYTES, advice)


def _dependencies() -> Iterator[Check]:
    from packaging.requirements import Requirement

    for text in requires("lsm") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(requirement.name, "missing", False, f"pip install '{requirement.name}{requirement.specifier}' -c constraints.txt")
            continue
        wanted = f"wants {requirement.specifier}"
        ok = requirement.specifier.contains(found, prereleases=True)
        yield Check(requirement.name, found if ok else f"{found}, {wanted}", ok, f"pip install '{requirement.name}{requirement.specifier}'")


def _extras() -> Iterator[Check]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        found = f"absent, optional: pip install 'lsm[{extra}]'" if missing else "present"
        yield Check(f"extra {extra}", found)


def _torch(wanted: str) -> Iterator[Check]:
    """Device, working precision, and two seconds of matrix products in it."""
    if find_spec("torch") is None:
        return
    import torch

    from lsm.provenance import choose_device, fast_dtype

    device, why_device = choose_device(wanted)
    dtype, why_dtype = fast_dtype(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    yield Check("device", f"{name} ({why_device}), {torch.get_num_threads()} threads")
    yield Check("precision", why_dtype)
    rate = matmul_flops(device, dtype)
    yield Check("matrix products", f"{rate / 1e9:,.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}")


def matmul_flops(device: Any, dtype: Any, *, size: int = 1024, seconds: float = TIMING_SECONDS) -> float:
    """Floating-point operations per second of `size`³ matrix products, each of 2 · size³ operations."""
    import torch

    left = torch.randn(size, size, device=device, dtype=dtype)
    product = left @ left
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        product = left @ left
        # Reading one number waits for the device: without it a GPU's queue would be timed, not its work.
        product[0, 0].item()
        done += 1
    return 2.0 * size**3 * done / elapsed


def _assets() -> Iterator[Check]:
    from lsm.assets import offline
    from lsm.assets.cache import cached_marker
    from lsm.assets.registry import REGISTRY

    yield Check("network", "forbidden by LSM_OFFLINE: cache only" if offline() else "allowed (LSM_OFFLINE is not set)")
    for asset in REGISTRY.values():
        cached = cached_marker(asset) is not None
        yield Check(f"asset {asset.name}", "cached" if cached else f"not cached, fetched when needed: lsm assets pull {asset.name}")
