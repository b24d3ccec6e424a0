"""One table and one plot of several runs of `lsm cram`: other LMs, other numbers of vectors, or a text crammed again.

    python scripts/cram_board.py RUN... --out DIR

Of a text that was crammed in the same way in more than one RUN (the folders given to `--out`) the search that held most counts: all of
them are lower bounds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lsm.bench.cram import summary
from lsm.files import make_folder, read_json
from lsm.report.cram import CRAM, TEXTS, plot_cram, text_rows
from lsm.report.tables import markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    best: dict[Any, dict[str, Any]] = {}
    for folder in options.runs:
        results = read_json(folder / "results.json")["results"]
        for row in results["texts"]:
            row = {"lm": results["lm"]["name"]} | row
            key = (row["lm"], row["form"], row["vectors"], row["kind"], row["name"])
            best[key] = max(best.get(key, row), row, key=lambda one: one["tokens_exact"])
    rows = [best[key] for key in sorted(best)]
    means = []
    for lm in dict.fromkeys(row["lm"] for row in rows):
        means += [{"lm": lm} | mean for mean in summary([row for row in rows if row["lm"] == lm], seed=0)]
    make_folder(options.out)
    print(markdown(text_rows(rows), TEXTS), markdown(means, (TEXTS[0], *CRAM)), sep="\n\n")
    plot_cram(rows, options.out / "cram.png")


if __name__ == "__main__":
    main()
