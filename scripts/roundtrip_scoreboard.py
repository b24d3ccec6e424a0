"""The whole round-trip scoreboard: every domain through every decoder and code, as JSON, Markdown and plots.

    python scripts/roundtrip_scoreboard.py --out DIR --texts news=FILE tales=FILE … -- [options of lsm roundtrip]

A domain is passed over when DIR/DOMAIN.json is there
(results of other options are refused). Rows are means over domains; each domain's own rows stand in its file.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from lsm.bench.parts import finished
from lsm.errors import UserError
from lsm.files import atomic_write, read_json, write_json
from lsm.progress import say
from lsm.report import tables
from lsm.report.plots import plot_roundtrip, plot_roundtrip_by_length


@dataclass
class Options:
    """Which domains; what stands after -- goes to lsm roundtrip."""

    out: Path
    texts: tuple[str, ...]
    """Domains: NAME=INPUT, held-out text."""


def main(options: Options, passed_on: list[str]) -> None:
    """Run what is missing, then join."""
    options.out.mkdir(parents=True, exist_ok=True)
    boards: dict[str, dict[str, Any]] = {}
    for item in options.texts:
        domain, _, where = item.partition("=")
        file, plan = options.out / f"{domain}.json", options.out / f"{domain}.asked.json"
        asked = {"text": where, "options": passed_on}
        if finished(plan, asked) is None:
            write_json(plan, {"results": {"asked": asked}})
        if not file.exists():
            say(f"{domain}: {where}")
            command = [sys.executable, "-m", "lsm", "roundtrip", where, "--domain", domain, "--json", str(file), "--show", "0", *passed_on]
            subprocess.run(command, check=True)
        boards[domain] = read_json(file)["results"]
    rows = averaged([row for board in boards.values() for row in board["rows"]], "label")
    lengths = averaged([row for board in boards.values() for row in board["by_length"]], "label", "length")
    negation = averaged([row for board in boards.values() for row in board.get("negation", [])], "label", "kind")
    write_json(options.out / "scoreboard.json", {"rows": rows, "by_length": lengths, "negation": negation, "domains": list(boards)})
    plot_roundtrip(rows, options.out / "roundtrip.png")
    plot_roundtrip_by_length(lengths, options.out / "roundtrip-by-length.png")
    with atomic_write(options.out / "scoreboard.md", "w") as handle:
        handle.write(page(boards, rows, lengths, negation))
    print((options.out / "scoreboard.md").read_text(encoding="utf-8"))


def averaged(rows: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Means over domains of the rows that agree in `keys`, without intervals."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    joined = []
    for group in groups.values():
        mean: dict[str, Any] = {key: value for key, value in group[0].items() if isinstance(value, str)}
        for key, value in group[0].items():
            values = [row[key] for row in group if row.get(key) is not None]
            if isinstance(value, (int, float)) or value is None:
                summed = key in ("n", "n_documents", "false_certificates")
                mean[key] = None if not values else sum(values) if summed else sum(values) / len(values)
        joined.append(mean)
    return joined


def page(boards: dict[str, Any], rows: list[dict[str, Any]], lengths: list[dict[str, Any]], negation: list[dict[str, Any]]) -> str:
    """The tables of docs/roundtrip.md."""
    parts = ["## All domains (means over " + ", ".join(boards) + ")\n", tables.markdown(rows, tables.ROUNDTRIP)]
    own = [row for row in lengths if row["vector"] == "own"]
    parts += ["\n## By length in characters\n", tables.markdown(own, tables.ROUNDTRIP_BY_LENGTH)]
    if negation:
        parts += ["\n## Pairs that differ in one word\n", tables.markdown(negation, tables.NEGATION)]
    for domain, board in boards.items():
        parts += [f"\n## {domain}\n", tables.markdown([row for row in board["rows"] if row["vector"] == "own"], tables.ROUNDTRIP)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        main(tyro.cli(Options, args=arguments[:cut]), arguments[cut + 1 :])
    except UserError as error:
        sys.exit(f"error: {error}")
