"""`lsm bench NAME`: systems side by side in one run, on the same documents."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from lsm.bench.cost_settings import CostSettings
from lsm.bench.encode_settings import EncodeBenchSettings
from lsm.config import CommonOptions
from lsm.errors import UserError


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Measure systems side by side, each in a process of its own."""

    benchmark: Positional[Literal["cost", "encode"]]
    """cost: a token-level transformer and the latent one of equal width and depth, time and peak memory against the length (a bench that
    was stopped goes on); encode: sentences a second and fidelity of lsm and sentence-transformers, with its backends, turn by turn."""
    input: Positional[tuple[str, ...]] = ("sotu",)
    """Files, folders, globs, recipe names or hf:DATASET[:SPLIT]: what is measured on, end to end."""
    out: Path
    """Folder for the tables (Markdown, CSV), results.json, the plot and the finished measurements."""
    systems: str | None = None
    """Which to measure, separated by commas; default: all. cost: token-full, token-window, latent, latent-encoding,
    latent-encoding-decoding; encode: st (the default that others are compared with), st-processes, st-bfloat16, st-onnx, st-onnx-int8,
    st-openvino, st-openvino-int8, lsm, lsm-float32, lsm-bfloat16."""
    encoder: str = "minilm"
    """Asset name, hub id or folder of the encoder."""
    repeats: int = 3
    """Runs behind each median; fewer in cost where they would pass --limit-seconds."""
    threads: int | None = None
    """CPU threads of every measurement; default: 1 in cost, all cores in encode."""
    limit_seconds: float = 900.0
    """cost: a measurement is left out when one run of it is predicted to take longer."""
    cost: Annotated[CostSettings, arg(name="")] = field(default_factory=CostSettings)
    encode: Annotated[EncodeBenchSettings, arg(name="")] = field(default_factory=EncodeBenchSettings)


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark that was named."""
    from lsm.commands.bench_cost import run_cost
    from lsm.commands.bench_encode import run_encode

    foreign: CostSettings | EncodeBenchSettings = options.encode if options.benchmark == "cost" else options.cost
    default = type(foreign)()
    if given := [one.name for one in fields(foreign) if getattr(foreign, one.name) != getattr(default, one.name)]:
        raise UserError(f"--{given[0].replace('_', '-')} is no option of lsm bench {options.benchmark}; leave it out")
    for name, value in (("--repeats", options.repeats), ("--threads", options.threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    if not options.limit_seconds > 0:
        raise UserError(f"--limit-seconds {options.limit_seconds}: must be above 0")
    return run_cost(options) if options.benchmark == "cost" else run_encode(options)
