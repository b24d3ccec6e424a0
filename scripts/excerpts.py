"""Take excerpts of documents: so many of them, drawn by a seed, and of each so many characters in whole paragraphs.

    python scripts/excerpts.py novels.jsonl.gz --out judged.jsonl --documents 25 --characters 45000
    python scripts/excerpts.py novels.jsonl.gz --out train.jsonl --skip 25 --characters 45000

For variety: many authors teach and judge better than a few whole novels. Where a document's excerpt begins is drawn too. The order of
the draw is one for a seed and the same inputs, so that `--skip` keeps for training what `--documents` took to be judged.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lsm.commands.script import run_script
from lsm.files import atomic_write
from lsm.text.readers import iter_documents


@dataclass
class Options:
    """What to cut, and how much of it."""

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """As for `lsm encode-corpus`."""
    out: Path
    """A .jsonl file."""
    documents: int | None = None
    """How many; all of them by default."""
    skip: int = 0
    """How many of the drawn order to leave."""
    characters: int = 45_000
    """Of each document, whole paragraphs; shorter documents are taken whole."""
    seed: int = 0


def excerpt(text: str, characters: int, draw: random.Random) -> str:
    """Whole paragraphs of `text`, at most `characters` (one longer paragraph is taken alone), from a drawn paragraph on."""
    if len(text) <= characters:
        return text
    paragraphs = text.split("\n\n")
    last = len(paragraphs) - 1
    room = characters
    while last > 0 and len(paragraphs[last]) + 2 <= room:  # the last paragraph from which the excerpt would still be full
        room -= len(paragraphs[last]) + 2
        last -= 1
    first = draw.randint(0, last)
    taken, size = [paragraphs[first]], len(paragraphs[first])
    for paragraph in paragraphs[first + 1 :]:
        size += 2 + len(paragraph)
        if size > characters:
            break
        taken.append(paragraph)
    return "\n\n".join(taken)


def main(options: Options) -> None:
    """Write the excerpts, one JSON object a line."""
    documents = list(iter_documents(list(options.inputs)))
    draw = random.Random(options.seed)
    order = draw.sample(range(len(documents)), len(documents))
    end = None if options.documents is None else options.skip + options.documents
    with atomic_write(options.out, "w") as handle:
        for index in order[options.skip : end]:
            text = excerpt(documents[index].text, options.characters, draw)
            handle.write(json.dumps({"id": documents[index].doc_id, "text": text}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run_script(main, Options, __doc__)
