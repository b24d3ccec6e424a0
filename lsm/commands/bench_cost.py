"""`lsm bench cost`: a token-level transformer and the latent one on the same document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lsm.commands.values import comma_separated, whole_numbers

if TYPE_CHECKING:
    from lsm.bench.cost import Bench
    from lsm.commands.bench import Options


def run_cost(options: Options) -> dict[str, Any]:
    """Measure every cell, print the tables, and write them with the plot."""
    from lsm.bench import cost_findings
    from lsm.lock import only_writer
    from lsm.progress import say
    from lsm.report import tables
    from lsm.report.plots import plot_cost

    bench, why = _cost_bench(options)
    with only_writer(options.out):
        say(
            f"cost of {', '.join(f'{n:,}' for n in bench.lengths)} tokens ({bench.encoder_name} vectors of {bench.encoder['dim']}, width "
            f"{bench.settings.hidden}, {bench.settings.layers} blocks; {bench.device}: {why}; {options.threads or 1} threads, "
            f"{options.repeats} repeats)",
            quiet=options.quiet,
        )
        bench.run()
        rows = bench.rows()
        slopes, crossings = cost_findings.slopes(rows), cost_findings.crossings(rows)
        tables.show(rows, tables.COST, title="Cost (seconds: median [interquartile range of the repeats])")
        tables.show(slopes, tables.COST_SLOPES, title="Slopes: seconds grow as tokens to this power")
        sentences = [found["sentence"] for found in crossings]
        print("\n".join(sentences))
        results = bench.facts() | {"rows": rows, "slopes": slopes, "crossings": crossings}
        _write(options, results, sentences)
        print(f"plot in {plot_cost(rows, options.out / 'cost.png', slopes=slopes, crossings=crossings)}")
    return results


def _cost_bench(options: Options) -> tuple[Bench, str]:
    """What can be refused without loading a model is refused here, before the first measurement."""
    from lsm.bench.cost import Bench
    from lsm.bench.cost_settings import SYSTEMS
    from lsm.bench.cost_text import read_text
    from lsm.decode.shipped import find_adapter
    from lsm.encode.encoder import encoder_info
    from lsm.errors import UserError
    from lsm.files import fingerprint, sha256_file
    from lsm.lm.tokens import load_tokens
    from lsm.provenance import choose_device

    settings, systems = options.cost, comma_separated(options.systems or ",".join(SYSTEMS))
    if unknown := [name for name in systems if name not in SYSTEMS]:
        raise UserError(f"--systems {','.join(unknown)}: choose from {', '.join(SYSTEMS)}")
    lengths = whole_numbers(settings.tokens, "--tokens")
    if min(lengths) < 2:
        raise UserError(f"--tokens {settings.tokens}: each length must be at least 2")
    device, why = choose_device(options.device)
    info = encoder_info(options.encoder, device=options.device)
    decoder = {}
    if settings.decoder == "prefix" and "latent-encoding-decoding" in systems:
        adapter = find_adapter(settings.adapter, encoder=info.fingerprint)
        decoder = {"weights": fingerprint({path.name: sha256_file(path) for path in sorted(adapter.glob("*.safetensors"))})}
    tokens = load_tokens(settings.tokenizer)
    text = read_text(options.input, max(lengths), tokens.encode, info.fits)
    for length in lengths:
        text.require(length)
    bench = Bench(
        settings=settings, systems=systems, text=text, lengths=lengths, vocabulary=max(tokens.vocabulary().values()) + 1,
        encoder=info.fingerprint, encoder_name=options.encoder, decoder=decoder, out=options.out, device=str(device),
        threads=options.threads or 1, repeats=options.repeats, limit_seconds=options.limit_seconds, seed=options.seed, quiet=options.quiet,
    )  # fmt: skip
    return bench, why


def _write(options: Options, results: dict[str, Any], sentences: list[str]) -> None:
    """cost.md, cost.csv and results.json."""
    import csv

    from lsm.files import atomic_write, write_json
    from lsm.provenance import report
    from lsm.report import tables

    table, slopes = tables.markdown(results["rows"], tables.COST), tables.markdown(results["slopes"], tables.COST_SLOPES)
    with atomic_write(options.out / "cost.md", "w") as handle:
        handle.write("\n\n".join([table, slopes, "\n".join(f"* {sentence}" for sentence in sentences)]) + "\n")
    with atomic_write(options.out / "cost.csv", "w") as handle:
        names = [
            "system",
            "pass",
            "length",
            "tokens",
            "sentences",
            "seconds",
            "peak_mebibytes",
            "gflop",
            "repeats",
            "extrapolated_seconds",
            "note",
        ]
        writer = csv.DictWriter(handle, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(results["rows"])
    write_json(
        options.out / "results.json",
        report(results, seed=options.seed, device=results["device"], elapsed_seconds=results["seconds_measured"]),
    )
