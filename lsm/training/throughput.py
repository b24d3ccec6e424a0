"""How fast a training goes: units a second, and its arithmetic as a share of what the hardware was measured to do (MFU)."""

from __future__ import annotations

import time
from typing import Any

import torch

from lsm.training.distributed import Ranks

_CPU_SIZE, _GPU_SIZE = 512, 8192


class Throughput:
    """Counts what the steps between `start` and `stop` did; evaluations and checkpoints are not counted.

    Args:
        flops_per_step: over all processes; 0 = not known.
    """

    def __init__(self, flops_per_step: float, ranks: Ranks, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._flops = device, flops_per_step
        # That of one process times their number: their shares of the memory bus are not measured.
        self.matmul_flops_per_second = ranks.size * matmul_rate(device, dtype) if flops_per_step else 0.0
        self._units: dict[str, float] = {}
        self._steps, self._seconds, self._began = 0, 0.0, 0.0
        if device.type == "cuda":  # the product's own memory is not the training's
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def start(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def stop(self) -> None:
        """The step is over."""
        self._steps += 1
        self._seconds += time.monotonic() - self._began

    def add(self, units: dict[str, float]) -> None:
        """Count a batch."""
        for name, count in units.items():
            self._units[name] = self._units.get(name, 0) + count

    def report(self) -> dict[str, Any]:
        """Units done and a second, `step_seconds`; where known `mfu` with the rate it is a share of; on CUDA `peak_memory_bytes`."""
        seconds = max(self._seconds, 1e-9)
        row: dict[str, Any] = {name: round(count, 1) for name, count in self._units.items()}
        row |= {f"{name}_per_second": round(count / seconds, 2) for name, count in self._units.items()}
        row["step_seconds"] = round(self._seconds / max(self._steps, 1), 5)
        if self._flops and self._steps:
            row["matmul_flops_per_second"] = self.matmul_flops_per_second
            row["mfu"] = round(self._steps * self._flops / seconds / self.matmul_flops_per_second, 4)
        if self._device.type == "cuda":
            row["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self._device)
        return row

    def line(self) -> str:
        """The report for a person."""
        row = self.report()
        parts = [f"{row[f'{name}_per_second']:,.1f} {name}/s" for name in self._units]
        if "mfu" in row:
            parts.append(f"MFU {row['mfu']:.1%} of {self.matmul_flops_per_second / 1e12:.3g} TFLOP/s, its measured matrix product")
        if "peak_memory_bytes" in row:
            parts.append(f"at most {row['peak_memory_bytes'] / 2**30:.2f} GiB on the GPU")
        return ", ".join(parts)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of one large square matrix product in `dtype`, the best of five."""
    size = _GPU_SIZE if device.type == "cuda" else _CPU_SIZE
    square = torch.randn(size, size, generator=torch.Generator(device).manual_seed(0), device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        began = time.monotonic()
        (square @ square)[0, 0].item()  # waits for the result
        best = min(best, time.monotonic() - began)
    return 2 * size**3 / best
