"""`lsm compress train|eval|pack|ask`: long prompts as few soft tokens for a frozen LM, counted in tokens and in bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lsm.commands.values import refuse_below, refuse_foreign
from lsm.compress.settings import CompressSettings
from lsm.config import CommonOptions
from lsm.errors import UserError


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of `lsm compress`; those of the settings override the entries of `--config`, and belong to train."""

    action: tyro.conf.Positional[Literal["train", "eval", "pack", "ask"]]
    """train [QUESTIONS...] --out RUN: train soft tokens; eval RUN QUESTIONS...: the scoreboard; pack RUN QUESTIONS... --out FILE: the texts
    as one file of integers; ask RUN --wire FILE --question TEXT: answer from such a file alone."""
    inputs: tyro.conf.Positional[tuple[str, ...]] = ()
    """For train questions (in place of data.train); else the run, then questions: JSONL files, folders or hf:DATASET[@CONFIG][:SPLIT] with
    text, question, answers and, where there is one, title."""
    out: Path | None = None
    """train: folder of the run; pack: the file; eval: folder that keeps finished rows, so that a stopped evaluation goes on; runs may
    share it."""
    config: Path | None = None
    """train: YAML file with the settings, such as configs/compress.yaml; None = the defaults."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: go on with the run in --out or start one; never: refuse a folder that holds a run; must: refuse one that does not."""
    questions: int = 200
    """eval: how many questions, spread evenly over articles and texts."""
    ratio: int | None = None
    """eval: only this ratio; pack: tokens a soft token (default: the run's first ratio)."""
    bits: Literal[8, 6, 4] = 8
    """pack: bits of an entry."""
    wire_bits: tuple[Literal[8, 6, 4], ...] = (8, 6, 4)
    """eval: rows of soft tokens that went through the wire at so many bits."""
    group: int = 64
    """eval, pack: entries that share a 16-bit scale."""
    resamples: int = 1000
    """eval: resamples of articles behind an interval."""
    beside: Path | None = None
    """eval: a run for another LM; both LMs answer, and both rescore the answers of either."""
    sentence_encoder: str = "minilm"
    """eval: encoder that picks the best sentences."""
    wire: Path | None = None
    """ask: file that pack wrote."""
    question: str | None = None
    """ask: what is asked of each text in the file."""
    settings: Annotated[CompressSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=CompressSettings)
    """Everything that shapes the result of train."""


_OF_ACTION = {
    "train": ("out", "config", "resume"),
    "eval": ("out", "questions", "ratio", "wire_bits", "group", "resamples", "beside", "sentence_encoder"),
    "pack": ("out", "ratio", "bits", "group"),
    "ask": ("wire", "question"),
}
_LARGEST_GROUP = 2**16 - 1
"""The file of soft tokens has 16 bits for it."""


def run(options: Options) -> dict[str, Any]:
    """Do one of the four."""
    _check(options)
    if options.action == "train":
        return _train(options)
    if options.action == "eval":
        from lsm.commands.compress_eval import evaluate

        return evaluate(options)
    from lsm.commands.compress_wire import ask, write

    return write(options) if options.action == "pack" else ask(options)


def _check(options: Options) -> None:
    refuse_foreign(options, _OF_ACTION, verb="compress")
    if options.action != "train" and options.settings != CompressSettings():
        raise UserError(f"settings of the training are no options of lsm compress {options.action}; leave them out")
    refuse_below(options, {"questions": 1, "ratio": 1, "group": 1, "resamples": 1})
    if options.group > _LARGEST_GROUP:
        raise UserError(f"--group {options.group}: must be at most {_LARGEST_GROUP}")
    if options.action == "train":
        return
    if not options.inputs:
        raise UserError(f"lsm compress {options.action}: name the run first, then files with questions")
    if options.action == "eval" and len(options.inputs) < 2:
        raise UserError("lsm compress eval: name files with questions that the run was not trained on")
    if options.action == "pack" and (len(options.inputs) < 2 or options.out is None):
        raise UserError("lsm compress pack: give RUN, files with questions (their texts are packed) and --out FILE")
    if options.action == "ask" and (len(options.inputs) > 1 or options.wire is None or not options.question):
        raise UserError("lsm compress ask: give RUN, --wire FILE and --question TEXT, and no files with questions")


def _train(options: Options) -> dict[str, Any]:
    import torch

    from lsm.compress.saved import load_parts
    from lsm.compress.task import CompressTask
    from lsm.text.questions import read_questions
    from lsm.training.loop import Trainer

    settings = options.settings
    inputs = options.inputs or settings.data.train
    if options.out is None:
        raise UserError("lsm compress train: give --out, the folder of the run")
    if not inputs:
        raise UserError("lsm compress train: name files with questions (or data.train in the config)")
    torch.set_num_threads(settings.threads)
    questions = read_questions(inputs)
    lm, source = load_parts(settings, device=options.device)
    layer = settings.encoder.layer if settings.encoder.source == "lm" else 0
    if max(layer, *settings.encoder.depths, *settings.encoder.states, 0) > lm.n_layers:
        raise UserError(f"encoder.layer, .states and .depths must be at most {lm.n_layers}, the layers of {settings.lm}")
    task = CompressTask(questions, lm, settings, seed=options.seed, source=source)
    results = Trainer(task, settings, options.out, seed=options.seed, resume=options.resume, quiet=options.quiet).train()
    scores = results["evaluation"]
    print(f"compressor in {options.out / 'final'}")
    print(
        f"held out, nats per answer token: {scores['loss']:.3f} (another text's soft tokens {scores['loss_shuffled_text']:.3f}, "
        f"no text {scores['loss_no_text']:.3f})"
    )
    return results
