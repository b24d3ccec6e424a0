"""Make a run of `lsm pretrain` small enough to ship: int8 matrices, float16 the rest, and a card with its held-out scores.

    lsm evaluate RUN --corpus JUDGED --train-corpus CORPUS --json SCORES.json
    python scripts/pack_latent.py RUN --out FOLDER --scores SCORES.json [SCORES2.json …] --data "what it was trained on, and its licence"

The documents that it was trained on are listed beside it, as beside the run, so that no scoreboard judges it on one of them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from lsm.commands.script import run_script
from lsm.files import atomic_folder, read_json
from lsm.latent.trained_on import TRAINED_ON
from lsm.latent.transformer import LatentTransformer
from lsm.progress import say
from lsm.report import tables


@dataclass
class Options:
    """What to pack."""

    run: Annotated[Path, tyro.conf.Positional]
    """Finished run."""
    out: Path
    """Folder to write."""
    scores: tuple[Path, ...] = ()
    """Results of lsm evaluate; the file's name is taken for the domain's."""
    data: str = ""
    """What it was trained on, and under which licence."""


def main(options: Options) -> None:
    """Write the packed folder."""
    final = options.run / "final" if (options.run / "final").is_dir() else options.run
    model = LatentTransformer.from_pretrained(final)
    card = [(final / "README.md").read_text(encoding="utf-8").rstrip(), "", "Stored in int8 with a scale for each row of a matrix."]
    if options.data:
        card += ["", f"Trained on {options.data}"]
    for path in options.scores:
        results = read_json(path)["results"]
        title = f"## Held out: {path.stem} ({results['rows'][0]['n_documents']} documents, {results['rows'][0]['n']:,} sentences)"
        card += ["", title, "", tables.markdown(results["rows"], tables.NEXT_SENTENCE)]
        if results.get("forecast"):
            card += ["", tables.markdown(results["forecast"], tables.FORECAST)]
    with atomic_folder(options.out) as folder:
        model.save_pretrained(folder, "\n".join(card) + "\n", dtype=torch.float16)
        if (final / TRAINED_ON).exists():
            shutil.copy(final / TRAINED_ON, folder / TRAINED_ON)
    megabytes = sum(path.stat().st_size for path in options.out.iterdir()) / 1e6
    say(f"{options.out}: {megabytes:.1f} MB")


if __name__ == "__main__":
    run_script(main, Options, __doc__)
