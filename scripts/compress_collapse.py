"""The published collapse of soft tokens and what lifts it: a byte encoder taught one answer token, then one part after the other changed.

    python scripts/compress_collapse.py --train FILE... --judge FILE... --out DIR [--lm NAME] [--steps N]

Each run is `lsm compress train` with configs/compress-collapse.yaml and some overrides; all have the same steps and texts. For each: nats a
token and F1 from own and from another text's soft tokens, how alike the vectors are, and by name what has collapsed. DIR/collapse.json and
DIR/collapse.md hold the table; finished runs are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsm.bench import compression
from lsm.bench.compression_findings import collapse, soft_token_findings
from lsm.cli import run_verb
from lsm.commands.compress_rows import load, send, spread, ways_at
from lsm.commands.script import run_script
from lsm.compress.saved import unseen
from lsm.errors import UserError
from lsm.files import atomic_write, write_json
from lsm.provenance import report
from lsm.report import tables
from lsm.text.questions import read_questions

RATIO = 8
BYTES = ["--encoder.source", "bytes", "--encoder.pooling", "mean"]
OWN_WORDS = ["--encoder.source", "lm", "--encoder.pooling", "weighted", "--encoder.rarity", "1", "--encoder.layer", "2"]
RUNS: dict[str, list[str]] = {
    "bytes, first answer token": [*BYTES, "--objectives.first-tokens", "1"],
    "bytes, whole answer": [*BYTES, "--objectives.first-tokens", "0"],
    "bytes, whole answer, InfoNCE and diversity": [
        *BYTES, "--objectives.first-tokens", "0", "--objectives.contrastive", "0.5", "--objectives.diversity", "0.5",
    ],
    "own words, first answer token": [*OWN_WORDS, "--objectives.first-tokens", "1"],
    "own words, whole answer": [*OWN_WORDS, "--objectives.first-tokens", "0"],
    "own words, whole answer, distilled": [*OWN_WORDS, "--objectives.first-tokens", "0", "--objectives.distill", "1"],
}  # fmt: skip
COLUMNS = (
    tables.Column("run", "run", "text"),
    tables.Column("nll", "nats a token", "share"),
    tables.Column("nll_shuffled", "another text's", "share"),
    tables.Column("nll_none", "no text", "share"),
    tables.Column("lead", "lead in nats", "share", interval=True),
    tables.Column("f1", "F1", "share"),
    tables.Column("unique_answers", "unique answers", "share"),
    tables.Column("cosine_between", "cosine between texts", "share"),
    tables.Column("cosine_within", "within", "share"),
    tables.Column("effective_rank", "effective rank", "count"),
    tables.Column("norm_ratio", "size of a word's"),
    tables.Column("collapsed", "collapsed", "text"),
)


@dataclass
class Options:
    """What to train and judge on."""

    train: tuple[str, ...]
    """Files with questions."""
    judge: tuple[str, ...]
    """Files with other questions."""
    out: Path
    """Folder of the runs and the table."""
    lm: str = "smollm2-135m-instruct"
    """Frozen LM."""
    steps: int = 60
    """Steps of each run."""
    questions: int = 24
    """Questions that judge each run."""
    runs: tuple[str, ...] = tuple(RUNS)
    """Which runs, by name."""


def main(options: Options) -> None:
    """Train and judge each run, then write the table."""
    if unknown := [name for name in options.runs if name not in RUNS]:
        raise UserError(f"--runs {unknown[0]!r}: there are {', '.join(map(repr, RUNS))}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.runs:
        run = options.out / name.replace(",", "").replace(" ", "-")
        steps = ["--lm", options.lm, "--steps", str(options.steps), "--eval-every", str(options.steps), "--ratios", str(RATIO)]
        steps += ["--optimizer.warmup-steps", str(min(5, options.steps))]
        run_verb("compress", ["train", *options.train, "--config", "compress-collapse", "--out", str(run), *steps, *RUNS[name], "--quiet"])
        rows.append({"run": name, **judged(run, options)})
        print(f"{name}: {rows[-1]['nll']:.3f} nats, {rows[-1]['nll_shuffled']:.3f} another text's; {rows[-1]['collapsed']}", flush=True)
    write_json(options.out / "collapse.json", report({"rows": rows}, seed=0, device="cpu", elapsed_seconds=0.0))
    with atomic_write(options.out / "collapse.md", "w") as file:
        file.write(tables.markdown(rows, COLUMNS) + "\n")


def judged(run: Path, options: Options) -> dict[str, Any]:
    """A row of the table."""
    loaded = load(run, device="cpu")
    longest = loaded.settings.data.max_context_tokens
    there = [one for one in unseen(read_questions(options.judge), run) if len(loaded.lm.tokens.encode([one.text])[0]) <= longest]
    if len({one.text for one in there}) < 2:
        raise UserError(f"--judge: {len(there)} questions on texts of at most {longest} tokens that training has not read; give others")
    questions = spread(there, options.questions)
    sent = send(loaded, questions, RATIO)
    ways = {way.label: way for way in ways_at(loaded, questions, RATIO, sent)}
    learned, shuffled = (compression.answer_all(loaded.lm, loaded.prompts, ways[label], questions) for label in ("learned", "shuffled"))
    nothing = compression.Way("no text", lambda some: ([loaded.compressor.word_mean_H.new_zeros(0, loaded.lm.width)] * len(some), None))
    none = compression.answer_all(loaded.lm, loaded.prompts, nothing, questions)
    row = compression.scoreboard_row(ways["learned"], learned, learned, none, questions, resamples=200)
    lead = compression.difference(learned, shuffled, questions, resamples=200)
    codes, heads = zip(*sent.values(), strict=True)
    soft = [row.detach() for row in loaded.compressor.receive(codes, heads, loaded.lm).tokens]
    findings = soft_token_findings(soft, embedding_rms=loaded.lm.embedding_rms())
    return {
        **findings, "nll": row["nll"], "f1": row["f1"], "unique_answers": row["unique_answers"], "n": len(questions),
        "nll_shuffled": float(np.mean(shuffled.scores["nll"])), "nll_none": float(np.mean(none.scores["nll"])),
        "lead": lead["nll"], "intervals": {"lead": lead["intervals"]["nll"]},
        "collapsed": "; ".join(collapse(findings, row, lead)) or "nothing",
    }  # fmt: skip


if __name__ == "__main__":
    run_script(main, Options, __doc__)
