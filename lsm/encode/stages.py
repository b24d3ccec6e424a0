"""Where the time of an encoding run goes: reading, splitting and writing in one process, tokenising and encoding in its workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields


@dataclass
class StageSeconds:
    """Seconds of each stage. The first four are of the process that reads and writes, the next two of all its workers together."""

    read: float = 0.0
    """Files to documents, decompression included."""
    split: float = 0.0
    """Documents to sentences."""
    write: float = 0.0
    wait: float = 0.0
    """For the workers."""
    tokenise: float = 0.0
    encode: float = 0.0
    """Texts to vectors and residual codes, tokenising apart."""
    wall: float = 0.0
    """From the first shard to the last."""
    workers: int = 1
    processes: int = 1
    """That read and write."""

    @contextmanager
    def counted(self, stage: str) -> Iterator[None]:
        """Count the time within it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + time.perf_counter() - began)

    def add(self, other: StageSeconds) -> None:
        """Count another process's work too; the walls of processes that ran together are not added."""
        for field in fields(self):
            if field.name != "wall":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.wall = max(self.wall, other.wall)

    def line(self) -> str:
        """For a person: shares of the time, and what sets the pace."""
        wall, capacity = max(self.wall, 1e-9) * self.processes, max(self.wall, 1e-9) * self.workers
        workers = {"tokenising": self.tokenise / capacity, "encoding": self.encode / capacity}
        here = {"reading": self.read / wall, "splitting": self.split / wall, "writing": self.write / wall, "waiting": self.wait / wall}
        busy = sum(workers.values()) >= sum(here.values()) - here["waiting"]
        pace = "encoding" if busy else max(("reading", "splitting", "writing"), key=lambda name: here[name])
        shares = [", ".join(f"{name} {share:.0%}" for name, share in group.items()) for group in (workers, here)]
        return f"time of {self.workers} workers: {shares[0]}; of the reading and writing process: {shares[1]}; {pace} sets the pace"
