"""What a person sees while work goes on: a bar on a terminal, one timed line every few seconds otherwise."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

LINE_EVERY_SECONDS = 10.0
_RECENT_LINES = 40

_silenced = False


@contextmanager
def silenced(silent: bool) -> Iterator[None]:
    """Within it `say` prints nothing when `silent`: `--quiet` reaches rooms (assets, readers) that are not handed the options."""
    global _silenced
    before, _silenced = _silenced, silent
    try:
        yield
    finally:
        _silenced = before


def say(message: str, *, quiet: bool = False) -> None:
    """Print one line of a plan or a result on stderr (stdout is kept for what a command makes)."""
    if not (quiet or _silenced):
        print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Progress over `total` units (None = unknown, or an estimate that may be passed), with rate and ETA.

    Use as a context manager and call `advance(n, note)`; `note` is a short text such as a loss.
    """

    def __init__(self, title: str, total: int | None, unit: str, *, quiet: bool = False) -> None:
        self.title, self.total, self.unit, self.quiet = title, total, unit, quiet
        self.done = 0
        self._start = time.monotonic()
        self._marks = deque([(self._start, 0)], maxlen=_RECENT_LINES)
        self._bar = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total, status="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def advance(self, n: int, note: str = "") -> None:
        """Count `n` more units as done and show it when it is time."""
        self.done += n
        if self.quiet:
            return
        now = time.monotonic()
        if self._bar:
            total = None if self.total is None else max(self.total, self.done)
            self._bar.update(self._task, completed=self.done, total=total, status=f"{self._rate(now)} {note}")
        if now - self._marks[-1][0] >= LINE_EVERY_SECONDS:
            if not self._bar:
                say(self._line(now, note))
            self._marks.append((now, self.done))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif not self.quiet and kind is None:
            say(f"{self.title}: {self.done:,} {self.unit} in {duration(time.monotonic() - self._start)}")

    def _seconds_each(self, now: float) -> float:
        """Over the last minutes: phases of one run may differ much."""
        then, done = self._marks[0]
        return max(now - then, 1e-9) / max(1, self.done - done)

    def _rate(self, now: float) -> str:
        each = self._seconds_each(now)
        return f"{1 / each:,.1f} {self.unit}/s" if each < 1 else f"{each:,.1f} s each"

    def _line(self, now: float, note: str) -> str:
        total = self.total if self.total and self.done <= self.total else None  # the estimate was too low: silence is better than it
        count = f"{self.done:,}" + (f"/{total:,}" if total else "")
        eta = f", {duration(self._seconds_each(now) * (total - self.done))} left" if total else ""
        return f"{self.title}: {count} {self.unit}, {self._rate(now)}{eta}{'  ' + note if note else ''}"
