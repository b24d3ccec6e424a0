"""Peak memory of this process: what tensors take on a GPU, resident memory on a CPU."""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Most memory held since this object was made, above what was held then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device) / 2**20
        elif device.type == "cpu":
            self._before = _reset_peak_rss()

    def mebibytes(self) -> float | None:
        """The peak; None where the device does not tell (MPS)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20 - self._before
        return max(0.0, _peak_rss() - self._before) if self.device.type == "cpu" else None


def available_mebibytes(device: str) -> float | None:
    """Memory that is free now on the GPU or, for the CPU, in the machine; None where the system does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0] / 2**20
    meminfo = Path("/proc/meminfo")
    if device != "cpu" or not meminfo.exists():
        return None
    return _kibibytes(meminfo, "MemAvailable") / 2**10


def _reset_peak_rss() -> float:
    """What is held now; where the system can, the high-water mark is set to it."""
    try:
        _CLEAR.write_text("5")  # proc(5)
    except OSError:
        return _peak_rss()
    return _kibibytes(_STATUS, "VmRSS") / 2**10


def _peak_rss() -> float:
    if _STATUS.exists():  # getrusage would also count what the process held that started us
        return _kibibytes(_STATUS, "VmHWM") / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _kibibytes(path: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key))
