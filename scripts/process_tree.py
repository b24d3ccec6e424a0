"""What a command takes with all processes that it starts: memory, CPU time, wall time. Reads /proc, so Linux only."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

EVERY_SECONDS = 0.5
SAY_EVERY = 60
"""Samples between two lines on what is held now."""


def watch(command: list[str]) -> tuple[dict[str, Any], int]:
    """Run the command; what its process tree took, and its exit code.

    The sum of RSS counts pages that processes share once for each, the sum of PSS counts them once.
    """
    cpu_before, begin = _children_cpu_seconds(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples: list[tuple[float, float, float]] = []
    while process.poll() is None:
        each = [memory(pid) for pid in tree(process.pid)]
        if each:
            samples.append((sum(rss for rss, _ in each), sum(pss for _, pss in each), max(rss for rss, _ in each)))
            if len(samples) % SAY_EVERY == 0:
                print(f"  {time.monotonic() - begin:.0f} s: {samples[-1][0]:.0f} MiB RSS, {samples[-1][1]:.0f} MiB PSS", flush=True)
        time.sleep(EVERY_SECONDS)
    seconds = time.monotonic() - begin
    totals = [sample[0] for sample in samples]
    edges = [round(len(totals) * i / 10) for i in range(11)]
    taken = {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(_children_cpu_seconds() - cpu_before, 2),
        "peak_rss_mebibytes": round(max(totals), 1),
        "peak_pss_mebibytes": round(max(sample[1] for sample in samples), 1),
        "peak_process_mebibytes": round(max(sample[2] for sample in samples), 1),
        "rss_by_tenth_mebibytes": [round(max(totals[a:b]), 1) for a, b in pairwise(edges) if b > a],
        "samples": len(samples),
    }
    return taken, process.returncode


def tree(root: int) -> list[int]:
    """The process and everything below it."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                todo += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS of a process in MiB; zeros when it has ended."""
    try:
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, IndexError):
        return 0.0, 0.0
    pss = next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 1024
    return rss, pss


def _children_cpu_seconds() -> float:
    """Of all descendants that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
