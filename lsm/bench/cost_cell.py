"""One measurement of `lsm bench cost` in a process of its own (`python -m lsm.bench.cost_cell JOB`): time and peak memory."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lsm.bench.apart import OUT_OF_MEMORY, end_with_parent
from lsm.bench.cost_systems import SYSTEMS
from lsm.bench.cost_text import Text
from lsm.bench.peak_memory import PeakMemory
from lsm.errors import UserError
from lsm.files import read_json, write_json
from lsm.provenance import fast_dtype

WARM_UP_TOKENS = 1000


@dataclass(kw_only=True)
class Job:
    """What one cell measures, as the process is told it."""

    asked: dict[str, Any]
    """Everything that the numbers depend on: kept with them."""
    system: str
    training: bool
    length: int
    """Tokens asked for."""
    document: str
    """File of the text."""
    result: str
    """File to write."""
    model: dict[str, Any]
    """Fields of `ModelSettings`, equal for both transformers."""
    vocabulary: int
    window: int
    dim: int
    """Width of the encoder's vectors."""
    encoder: str
    adapter: str | None
    lm: str | None
    decode_sentences: int
    device: str
    threads: int
    repeats: int
    limit_seconds: float
    """No further repeat begins once it would end after this."""
    seed: int

    def save(self, path: Path) -> None:
        """Write the job for its process."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read what `save` wrote."""
        return cls(**read_json(path))


def measure(job: Job) -> dict[str, Any]:
    """Build the system, warm up on a short beginning, run it up to `repeats` times; the numbers of one row."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    device = torch.device(job.device)
    text = Text.load(Path(job.document)).cut(job.length)
    _import_libraries(job)
    peak = PeakMemory(device)
    run, count = SYSTEMS[job.system](job, device)
    run(text.cut(min(job.length, WARM_UP_TOKENS)))
    seconds: list[dict[str, float]] = []
    began = time.perf_counter()
    while len(seconds) < job.repeats:
        seconds.append(run(text))
        spent = time.perf_counter() - began
        if spent * (1 + 1 / len(seconds)) > job.limit_seconds:
            break
    totals = [sum(parts.values()) for parts in seconds]
    low, middle, high = np.percentile(totals, (25, 50, 75))
    return {
        "tokens": text.n_tokens,
        "sentences": len(text.sentences),
        "seconds": float(middle),
        "intervals": {"seconds": [float(low), float(high)]},
        "parts": {name: float(np.median([parts[name] for parts in seconds])) for name in seconds[0]},
        "repeats": len(seconds),
        "run_seconds": spent / len(seconds),
        "decoded_sentences": min(job.decode_sentences, len(text.sentences)) if "decoding" in seconds[0] else None,
        "peak_mebibytes": peak.mebibytes(),
        "gflop": count(text) / 1e9,
        "dtype": str(fast_dtype(device)[0]).removeprefix("torch."),
    }


def _import_libraries(job: Job) -> None:
    """Code is not the system's memory: what will be imported is imported before the baseline is taken."""
    from importlib import import_module

    names = (
        []
        if job.system in ("token-full", "token-window", "latent")
        else ["lsm.encode.transformer_encoder", "transformers.models.bert.modeling_bert"]
    )
    if job.system == "latent-encoding-decoding":
        names += ["lsm.decode.decoders", "transformers.models.llama.modeling_llama"]
    for name in names:
        import_module(name)
    nn.Linear(8, 8).to(job.device)(torch.zeros(1, 8, device=job.device)).sum().backward()


def perform(job: Job) -> None:
    """Measure and write the result; too little memory is a result too."""
    try:
        found = measure(job)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        found = {"skipped": OUT_OF_MEMORY, "limit_seconds": job.limit_seconds}
    write_json(Path(job.result), {"results": {"asked": job.asked} | found})


def main(path: str) -> int:
    """The process: 0, or 2 with a line on stderr for what the user can mend."""
    end_with_parent()
    try:
        perform(Job.load(Path(path)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
