"""One table and one plot of several runs of `lsm cram`: other LMs, other numbers of vectors, or a text crammed again.

    python scripts/cram_board.py RUN... --out DIR

Of a text that was crammed in the same way in more than one RUN (the folders given to `--out`) the last one named counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lsm.bench.cram import summary
from lsm.files import make_folder, read_json
from lsm.report.cram import CRAM, TEXTS, plot_cram, text_rows
from lsm.report.tables import markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    latest = {}
    for folder in options.runs:
        results = read_json(folder / "results.json")["results"]
        for row in results["texts"]:
            row = {"lm": results["lm"]["name"]} | row
            latest[row["lm"], row["form"], row["vectors"], row["kind"], row["name"]] = row
    rows = [latest[key] for key in sorted(latest)]
    means = []
    for lm in dict.fromkeys(row["lm"] for row in rows):
        means += [{"lm": lm} | mean for mean in summary([row for row in rows if row["lm"] == lm], seed=0)]
    make_folder(options.out)
    print(markdown(text_rows(rows), TEXTS), markdown(means, (TEXTS[0], *CRAM)), sep="\n\n")
    plot_cram(rows, options.out / "cram.png")


if __name__ == "__main__":
    main()
