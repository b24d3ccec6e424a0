"""`lsm bench cost`: a token-level transformer and the latent one on the same document, cell by cell, each in a process of its own.

A cell is one system, one pass and one length. What is finished is kept in `cells/`, so that a bench that was killed goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lsm.bench.apart import run_apart
from lsm.bench.cost_cell import Job
from lsm.bench.cost_estimate import Estimate
from lsm.bench.cost_settings import PASSES, SYSTEMS, CostSettings
from lsm.bench.cost_text import Text
from lsm.bench.parts import finished
from lsm.bench.peak_memory import available_mebibytes
from lsm.config import to_dict
from lsm.files import write_json
from lsm.latent.settings import ModelSettings
from lsm.progress import duration, say

_START_SECONDS = 5.0
"""What starting a process, loading its models and warming them up takes: a guess until it is measured."""


@dataclass(kw_only=True)
class Bench:
    """One call of the bench: what is measured, and on what."""

    settings: CostSettings
    systems: Sequence[str]
    text: Text
    lengths: Sequence[int]
    vocabulary: int
    encoder: dict[str, Any]
    """Fingerprint of the encoder."""
    encoder_name: str
    decoder: dict[str, Any]
    """What the adapter is; empty without one."""
    out: Path
    device: str
    threads: int = 1
    repeats: int = 3
    limit_seconds: float = 900.0
    """A cell whose one pass is predicted to take longer is not run."""
    seed: int = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        self.estimate = Estimate(self)
        self.cells: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._start_seconds = _START_SECONDS

    @property
    def model(self) -> ModelSettings:
        """Both transformers; without dropout, whose time is not the question."""
        size = self.settings
        return ModelSettings(hidden=size.hidden, layers=size.layers, heads=size.heads, anchor=size.anchor, dropout=0.0)

    @property
    def keys(self) -> list[tuple[str, str, int]]:
        """(system, pass, length) of every cell, short ones first. A training step words nothing, so it has no decoding."""
        return [
            (system, kind, length)
            for length in sorted(self.lengths)
            for system in SYSTEMS
            for kind in PASSES
            if system in self.systems and not (system == "latent-encoding-decoding" and (kind == "training" or not self.decoder))
        ]

    def asked(self, system: str, kind: str, length: int) -> dict[str, Any]:
        """Everything that a cell's numbers depend on, this machine apart."""
        settings, encodes = self.settings, "encoding" in system
        asked: dict[str, Any] = {
            "system": system, "pass": kind, "length": length, "text": self.text.cut(length).fingerprint(), "hidden": settings.hidden,
            "layers": settings.layers, "heads": settings.heads, "device": self.device, "threads": self.threads, "repeats": self.repeats,
            "seed": self.seed,
        }  # fmt: skip
        if system.startswith("token"):
            asked |= {"vocabulary": self.vocabulary}
        else:
            asked |= {"anchor": settings.anchor, "dim": self.encoder["dim"]}
        if system == "token-window":
            asked |= {"window": settings.window}
        if encodes:
            asked |= {"encoder": self.encoder["sha256"]}
        if "decoding" in system:
            asked |= {"decoder": self.decoder, "decode_sentences": settings.decode_sentences}
        return asked

    def run(self) -> None:
        """Measure every cell that is not there yet; fills `cells`.

        Raises:
            UserError: cells in `out` were measured otherwise, or a part cannot be loaded.
        """
        (self.out / "cells").mkdir(parents=True, exist_ok=True)
        document = self.out / "document.json"
        self.text.save(document)
        for key in self.keys:
            found = finished(self._file(key), self.asked(*key))
            # A cell that was left out for its time gets another try when more time is given.
            if found and not (found.get("skipped") and found["limit_seconds"] < self.limit_seconds):
                self.cells[key] = found
        waiting = [key for key in self.keys if key not in self.cells]
        say(f"{len(self.keys)} cells, {len(self.keys) - len(waiting)} of them measured before; {self._left(waiting)}", quiet=self.quiet)
        for number, key in enumerate(waiting, start=1):
            began = time.monotonic()
            found = self._too_much(key) or self._measured(key, document)
            if not found.get("skipped"):
                self._start_seconds = max(0.0, time.monotonic() - began - found["repeats"] * found["run_seconds"])
            self.cells[key] = found
            line = f"{number}/{len(waiting)} {SYSTEMS[key[0]]}, {key[1]}, {key[2]:,} tokens: "
            what = found.get("skipped") or f"{found['seconds']:.3g} s" + (f", {peak:,.0f} MiB" if (peak := found["peak_mebibytes"]) else "")
            say(line + what + (f"; {self._left(waiting[number:])}" if number < len(waiting) else ""), quiet=self.quiet)

    def rows(self) -> list[dict[str, Any]]:
        """One row a cell: the scoreboard."""
        rows = []
        for key in self.keys:
            system, kind, length = key
            cell = {name: value for name, value in self.cells[key].items() if name != "asked"}
            row = {"system": system, "label": SYSTEMS[system], "pass": kind, "length": length, "seconds": None} | cell
            if cell.get("skipped"):
                text = self.text.cut(length)
                row |= {"tokens": text.n_tokens, "sentences": len(text.sentences), "note": cell["skipped"]}
                row["extrapolated_seconds"] = self.estimate.extrapolated(key)
            else:
                row["note"] = _note(cell)
            rows.append(row)
        return sorted(rows, key=lambda row: (PASSES.index(row["pass"]), list(SYSTEMS).index(row["system"]), row["length"]))

    def facts(self) -> dict[str, Any]:
        """What the rows were measured with."""
        dtypes = {cell["dtype"] for cell in self.cells.values() if cell.get("dtype")}
        return {
            "device": self.device,
            "threads": self.threads,
            "dtype": ", ".join(sorted(dtypes)),
            "settings": to_dict(self.settings) | {"systems": list(self.systems)},
            "encoder": self.encoder,
            "parameters": self.estimate.parameters(),
            "limit_seconds": self.limit_seconds,
            "seconds_measured": sum(cell["run_seconds"] * cell["repeats"] for cell in self.cells.values() if not cell.get("skipped")),
        }

    def _too_much(self, key: tuple[str, str, int]) -> dict[str, Any] | None:
        """The reason not to run a cell: its predicted time or memory."""
        reason = None
        seconds, mebibytes, free = self.estimate.seconds(key), self.estimate.mebibytes(key), available_mebibytes(self.device)
        if self.estimate.measured(key) and seconds > self.limit_seconds:
            reason = f"not run: about {duration(seconds)} predicted, --limit-seconds {self.limit_seconds:g}"
        elif mebibytes is not None and free is not None and mebibytes > free:
            reason = f"not run: about {mebibytes:,.0f} MiB predicted, {free:,.0f} MiB free"
        return None if reason is None else {"skipped": reason, "limit_seconds": self.limit_seconds}

    def _measured(self, key: tuple[str, str, int], document: Path) -> dict[str, Any]:
        system, kind, length = key
        job = Job(
            asked=self.asked(*key), system=system, training=kind == "training", length=length, document=str(document),
            result=str(self._file(key)), model=asdict(self.model), vocabulary=self.vocabulary, window=self.settings.window,
            dim=self.encoder["dim"], encoder=self.encoder_name, adapter=self.settings.adapter, lm=self.settings.lm,
            decode_sentences=self.settings.decode_sentences, device=self.device, threads=self.threads, repeats=self.repeats,
            limit_seconds=self.limit_seconds, seed=self.seed,
        )  # fmt: skip
        waits = self.out / "job.json"
        job.save(waits)
        skipped = run_apart("lsm.bench.cost_cell", waits, threads=self.threads, timeout_seconds=3 * self.limit_seconds + 300)
        waits.unlink()
        if skipped is not None:
            write_json(self._file(key), {"results": {"asked": job.asked, "skipped": skipped, "limit_seconds": self.limit_seconds}})
        found = finished(self._file(key), job.asked)
        assert found is not None, f"no result in {job.result}"
        return found

    def _left(self, keys: Sequence[tuple[str, str, int]]) -> str:
        seconds = 0.0
        for key in keys:
            if self._too_much(key) is None:
                once = self.estimate.seconds(key)
                seconds += self._start_seconds + max(once, min(self.repeats * once, self.limit_seconds))
        return f"about {duration(seconds)} left"

    def _file(self, key: tuple[str, str, int]) -> Path:
        return self.out / "cells" / f"{key[0]}-{key[1]}-{key[2]}.json"


def _note(cell: dict[str, Any]) -> str:
    """Where the seconds went, and which of them were scaled."""
    parts = [f"{name} {seconds:.3g}" for name, seconds in cell["parts"].items()] if len(cell["parts"]) > 1 else []
    n = cell["decoded_sentences"]
    return ", ".join(parts) + (f" (scaled from {n} sentences)" if n and n < cell["sentences"] else "")
