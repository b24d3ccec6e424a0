"""`lsm bench encode`: encoding speed and fidelity beside sentence-transformers and its backends."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm.commands.values import comma_separated

if TYPE_CHECKING:
    from lsm.commands.bench import Options


def run_encode(options: Options) -> dict[str, Any]:
    """Load all systems, let them encode in turn, print the table, and write it."""
    from lsm.bench import encode
    from lsm.bench.encode_settings import REFERENCE, SYSTEMS
    from lsm.encode.encoder import encoder_info, find_model
    from lsm.errors import UserError
    from lsm.files import atomic_write, write_json
    from lsm.progress import say
    from lsm.provenance import report
    from lsm.report import tables

    threads = options.threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    chosen = encode.choose_systems(comma_separated(options.systems or ",".join(SYSTEMS)), options.encode.backends)
    info, (folder, _) = encoder_info(options.encoder, device="cpu"), find_model(options.encoder)
    domains, calibration = encode.read_domains(options.input, options.encode.sentences, info.fits)
    pairs: list[encode.Pairs] = []
    for path in options.encode.sts:
        pairs.append(encode.read_pairs(path, [one.name for one in (*domains, *pairs)]))
    options.out.mkdir(parents=True, exist_ok=True)
    say(
        f"{sum(len(one.texts) for one in domains):,} distinct sentences of {', '.join(one.name for one in domains)}; "
        f"{len(chosen)} systems with {threads} threads each, {options.repeats} rounds in turn",
        quiet=options.quiet,
    )
    limit, rate = encode.roofline(options.encoder, domains, threads)
    with tempfile.TemporaryDirectory(dir=options.out) as scratch, ExitStack() as stack:
        texts = Path(scratch) / "calibration.json"
        write_json(texts, calibration)
        systems = []
        for name, python in chosen.items():
            model = options.encoder if name.startswith("lsm") else str(folder)
            how = {"python": python, "model": model, "threads": threads, "calibration": texts, "folder": Path(scratch)}
            systems.append(stack.enter_context(encode.System(name, **how)))
            if reason := systems[-1].measured.failed:
                say(f"{name}: left out ({reason})")
        if systems[0].measured.failed:
            raise UserError(f"{REFERENCE} cannot be run, which the others are compared with: {systems[0].measured.failed}")
        running = [system for system in systems if not system.measured.failed]
        encode.measure(running, domains, pairs, Path(scratch), rounds=options.repeats)
    rows = encode.rows([system.measured for system in systems], domains, pairs, limit=limit)
    columns = (*tables.ENCODE, *(tables.Column(f"sts_{one.name}", f"STS {one.name}\nSpearman × 100", "number") for one in pairs))
    overall = [row for row in rows if row["domain"] == "all"]
    tables.show(overall, columns, title=f"Encoding, {threads} threads (median of {options.repeats} rounds [range])")
    bound = next(row for row in overall if row["system"] == REFERENCE)
    line = (
        f"roofline: {threads} threads multiply {rate / 1e9:,.0f} GFLOP/s in float32, which is {limit['all']:,.0f} of these sentences a "
        f"second, {limit['all'] / bound['sentences_per_second']:.2f} times the default"
    )
    print(line)
    results = {
        "rows": rows, "encoder": info.fingerprint, "threads": threads, "matmul_flops_per_second": rate, "roofline": limit,
        "ratio_to_default": {row["system"]: row["ratio"] for row in overall if row.get("ratio")},
    }  # fmt: skip
    with atomic_write(options.out / "encode.md", "w") as handle:
        handle.write(tables.markdown(overall, columns) + f"\n\n{line}\n\n" + tables.markdown(rows, (tables.DOMAIN, *tables.ENCODE)) + "\n")
    write_json(options.out / "results.json", report(results, seed=options.seed, device="cpu", elapsed_seconds=0.0))
    return results
