"""`lsm cram`: how many tokens can memory vectors of a frozen LM hold, word for word?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional

from lsm.commands.values import comma_separated, whole_numbers
from lsm.config import CommonOptions, to_dict
from lsm.cram.settings import CramSettings
from lsm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lsm.bench.cram import Held
    from lsm.cram.reading import Form
    from lsm.cram.run import Crammed, Unit
    from lsm.cram.text import Target
    from lsm.lm.frozen import FrozenLM

_CODE_TOKENS = 1024
"""Tokens of a document that the superposition code may hold."""
_MOST_VECTORS = 32


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of `lsm cram`; those of the settings override the entries of `--config`."""

    input: Positional[tuple[str, ...]]
    """Files, folders, globs, recipe names such as sotu, or hf:DATASET[:SPLIT]: the documents whose first tokens are crammed."""
    out: Path = Path("cram")
    """Folder for vectors, results.json, table, plots and page; the same command goes on with what was stopped there."""
    config: Path | None = None
    """YAML file with the settings, such as configs/cram.yaml, or its bare name; None = the defaults."""
    settings: Annotated[CramSettings, OmitArgPrefixes] = field(default_factory=CramSettings)
    """Everything that shapes the result."""


def run(options: Options) -> dict[str, Any]:
    """Cram, measure, print the tables, and write them with the plots."""
    import torch

    from lsm.bench.cram import summary
    from lsm.cram.run import Crammer
    from lsm.lm.frozen import FrozenLM
    from lsm.lock import only_writer
    from lsm.progress import Progress
    from lsm.provenance import choose_device
    from lsm.report.cram import show_cram, write_cram

    settings, started = options.settings, time.monotonic()
    device, why = choose_device(options.device)
    torch.set_num_threads(settings.threads)
    n_vectors, bits, kl_weights = _numbers(settings)
    lm = FrozenLM.load(settings.lm, device=device, dtype=torch.float32 if settings.precision == "float32" else None)
    targets, code_ids = _targets(options, lm)
    units = _units(settings, targets, _questions(lm, settings), n_vectors, kl_weights)
    if not units:
        raise UserError("nothing to cram: --texts, --random-texts and --questions are 0")
    with only_writer(options.out):
        _same_run(options, lm, targets)
        total = _say_plan(options, lm, units, f"{device}: {why}, {lm.dtype}")
        with Progress("cram", total, "text-steps", quiet=options.quiet) as progress:
            crammer = Crammer(lm, settings, options.out, seed=options.seed, notice=progress.advance)
            crammed = []
            for unit in units:
                crammed.append((unit, crammer.cram(unit)))
                used = sum(each.numbers["steps"] for each in crammed[-1][1])
                progress.advance(max(0, _most_steps(unit, settings) - used))
        rows = _capacity(options, lm, [pair for pair in crammed if not pair[0].name.startswith("use")], bits, code_ids)
        use = _usefulness(options, lm, [pair for pair in crammed if pair[0].name.startswith("use")])
        results = {"lm": lm.fingerprint(), "dtype": str(lm.dtype), "settings": to_dict(settings), "rows": summary(rows, seed=options.seed)}
        results |= {"texts": rows, "usefulness": use}
        show_cram(results)
        seconds = time.monotonic() - started
        print(f"page in {write_cram(options.out, results, seed=options.seed, device=str(device), elapsed_seconds=seconds)}")
    return results


def _numbers(settings: CramSettings) -> tuple[list[int], list[int], list[float]]:
    """What is written with commas; what can be refused without an LM is refused here."""
    n_vectors, bits = whole_numbers(settings.vectors, "--vectors"), whole_numbers(settings.bits, "--bits")
    if not all(1 <= n <= _MOST_VECTORS for n in n_vectors):
        raise UserError(f"--vectors {settings.vectors}: each number must lie in 1 … {_MOST_VECTORS}")
    if not all(2 <= n <= 8 for n in bits):
        raise UserError(f"--bits {settings.bits}: each number must lie in 2 … 8")
    try:
        kl_weights = [float(part) for part in comma_separated(settings.kl_weights)]
    except ValueError as error:
        raise UserError(f"--kl-weights {settings.kl_weights}: give numbers separated by commas") from error
    if not all(0 <= weight < math.inf for weight in kl_weights):
        raise UserError(f"--kl-weights {settings.kl_weights}: each must be a number, not below 0")
    if settings.questions and not kl_weights:
        raise UserError("--kl-weights names none; give at least one, such as 0, or --questions 0")
    from lsm.bench.cram_use import QUESTIONS

    if settings.questions > len(QUESTIONS):
        raise UserError(f"--questions {settings.questions}: there are {len(QUESTIONS)}")
    return n_vectors, bits, kl_weights


def _targets(options: Options, lm: FrozenLM) -> tuple[list[Target], dict[str, list[int]]]:
    """The texts, random ones last, and by name the longer beginnings for the superposition code."""
    from dataclasses import replace

    from lsm.commands.cram_texts import beginnings, random_texts
    from lsm.text.readers import iter_documents

    settings, most = options.settings, options.settings.growth.max_tokens
    documents = iter_documents(options.input)
    n_tokens = max(most, _CODE_TOKENS) if settings.code else most
    natural, words = beginnings(documents, lm.tokens, n_texts=settings.texts, n_tokens=n_tokens, skip=settings.skip_tokens)
    drawn = random_texts(words, lm.tokens, n_texts=settings.random_texts, n_tokens=n_tokens, seed=options.seed)
    long = [*natural, *drawn]
    return [replace(target, ids=target.ids[:most]) for target in long], {target.name: target.ids for target in long}


def _questions(lm: FrozenLM, settings: CramSettings) -> list[Target]:
    from lsm.bench.cram_use import QUESTIONS
    from lsm.cram.text import Target

    rows = lm.tokens.encode_exact([asked.text for asked in QUESTIONS[: settings.questions]])
    return [Target(name=f"question-{n}", kind="question", ids=row) for n, row in enumerate(rows)]


def _units(
    settings: CramSettings, targets: list[Target], questions: list[Target], n_vectors: Sequence[int], kl_weights: Sequence[float]
) -> list[Unit]:
    """Everything to optimise, in batches, each with a name that is its folder's."""
    from lsm.cram.run import Unit

    def batches(name: str, some: list[Target], n: int, form: Form = "autoregressive", kl_weight: float = 0.0) -> list[Unit]:
        starts = range(0, len(some), settings.batch_texts)
        return [
            Unit(name=f"{name}-{number}", n_vectors=n, targets=some[start : start + settings.batch_texts], form=form, kl_weight=kl_weight)
            for number, start in enumerate(starts)
        ]

    units = [unit for n in n_vectors for unit in batches(f"vectors-{n}", targets, n, kl_weight=settings.kl_weight)]
    units += batches("one-pass", targets[: settings.one_pass_texts], 2, form="one-pass", kl_weight=settings.kl_weight)
    for weight in kl_weights if questions else ():
        units += batches(f"use-kl-{weight:g}", questions, settings.question_vectors, kl_weight=weight)
    return units


def _same_run(options: Options, lm: FrozenLM, targets: Sequence[Target]) -> None:
    """Refuse a folder that another run has written in; `--threads` counts, because sums depend on it."""
    from lsm.files import fingerprint, read_json, write_json

    whole = {"settings": to_dict(options.settings), "seed": options.seed, "lm": lm.fingerprint(), "dtype": str(lm.dtype)}
    whole["texts"] = fingerprint([target.ids for target in targets])
    path, mine = options.out / "plan.json", fingerprint(whole)
    if path.exists() and (theirs := read_json(path).get("fingerprint")) != mine:
        raise UserError(f"--out {options.out} holds a run of other texts or settings (fingerprint {theirs}, this one's is {mine}); "
                        "choose another folder")  # fmt: skip
    write_json(path, whole | {"fingerprint": mine})


def _most_steps(unit: Unit, settings: CramSettings) -> int:
    from lsm.cram.growth import Growth

    return sum(Growth(len(target.ids)).most_stages(settings.growth) for target in unit.targets) * settings.stage.steps


def _say_plan(options: Options, lm: FrozenLM, units: Sequence[Unit], where: str) -> int:
    """Print what will be done and how long it takes at most; the number of text-steps."""
    import torch

    from lsm.cram.reading import Reading
    from lsm.progress import duration, say

    settings = options.settings
    total = sum(_most_steps(unit, settings) for unit in units)
    first = units[0]
    half = max(1, settings.growth.max_tokens // 2)
    vectors_BPH = torch.zeros(len(first.targets), first.n_vectors, lm.width, device=lm.device, requires_grad=True)
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        told = Reading(lm, first.form).told(vectors_BPH, [target.ids[:half] for target in first.targets])
        told.loss_B.sum().backward()
        told.loss_B.tolist()
        seconds = (time.perf_counter() - start) / len(first.targets)
    texts = ", ".join(f"{unit.name}: {len(unit.targets)} texts × {unit.n_vectors} × {lm.width}" for unit in units)
    say(f"cram: {lm.name} ({where}); {texts}", quiet=options.quiet)
    say(
        f"at most {total:,} text-steps of {seconds * 1000:,.0f} ms (at {half} tokens): {duration(total * seconds)}; a target that is "
        "reached early ends its stage, so mostly a third of that",
        quiet=options.quiet,
    )
    return total


def _held(lm: FrozenLM, unit: Unit, each: Crammed, *, start_token: bool) -> Held:
    from lsm.bench.cram import Held
    from lsm.cram.reading import Reading

    reading = Reading(lm, unit.form, start=start_token)

    def told(vectors_BPH: Tensor, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        found = reading.told(vectors_BPH.to(lm.device), rows)
        return found.loss_B, found.n_right_B

    def decode(vectors_BPH: Tensor, n_tokens: Sequence[int]) -> list[list[int]]:
        return reading.decode(vectors_BPH.to(lm.device), n_tokens)

    return Held(ids=each.target.ids, n_tokens=each.n_tokens, vectors_PH=each.vectors_PH, told=told, decode=decode)


def _capacity(
    options: Options, lm: FrozenLM, crammed: Sequence[tuple[Unit, list[Crammed]]], bits: Sequence[int], code_ids: dict[str, list[int]]
) -> list[dict[str, Any]]:
    """A row for each text and way."""
    from lsm.bench.cram import capacity_row, quantised_rows
    from lsm.bench.cram_bits import quantised, stored_bytes
    from lsm.bench.cram_code import SameBytes

    settings, rows = options.settings, []
    for unit, texts in crammed:
        n_entries = unit.n_vectors * lm.width
        code = SameBytes(lm, stored_bytes(n_entries, 8, settings.group)) if settings.code and unit.form == "autoregressive" else None
        for each in texts:
            held = _held(lm, unit, each, start_token=settings.start_token)
            row: dict[str, Any] = {
                "lm": lm.name,
                "name": each.target.name,
                "kind": each.target.kind,
                "vectors": unit.n_vectors,
                "form": unit.form,
            }
            row |= capacity_row(lm, held, each.numbers["stages"], teacher_forced=settings.teacher_forced)
            ways = {n: (quantised(each.vectors_PH, n, settings.group), stored_bytes(n_entries, n, settings.group)) for n in bits}
            row |= {"quantised": quantised_rows(held, ways), "float32_bytes": stored_bytes(n_entries, 32, settings.group)}
            row |= {"code": code.measure(code_ids[each.target.name]) if code else None}
            row |= {"steps": each.numbers["steps"], "stages": each.numbers["stages"], "trajectory": each.numbers["trajectory"]}
            rows.append(row)
    return rows


def _usefulness(options: Options, lm: FrozenLM, crammed: Sequence[tuple[Unit, list[Crammed]]]) -> list[dict[str, Any]]:
    """A row for each context before a question: nothing, the text, another text's vector, the text's own, without and with the KL term."""
    from lsm.bench.cram_use import QUESTIONS, Usefulness
    from lsm.cram.reading import Reading

    by_weight: dict[float, list[Crammed]] = {}
    for unit, texts in crammed:
        by_weight.setdefault(unit.kl_weight, []).extend(texts)
    if not by_weight:
        return []
    use, reading = Usefulness(lm), Reading(lm, start=options.settings.start_token)
    asked = QUESTIONS[: len(next(iter(by_weight.values())))]
    contexts: dict[str, tuple[list[Tensor], list[int] | None]] = {
        "no context": ([use.nothing()] * len(asked), None),
        "the text itself": ([use.text(each.text) for each in asked], None),
    }
    for weight, texts in by_weight.items():
        own = [reading.prefix(each.vectors_PH[None].to(lm.device))[0] for each in texts]
        contexts[f"its vector, KL weight {weight:g}"] = (own, [each.n_tokens for each in texts])
        if len(own) > 1:
            contexts[f"another's vector, KL weight {weight:g}"] = (own[1:] + own[:1], None)
    rows = []
    for name, (prefixes, n_tokens) in contexts.items():
        row: dict[str, Any] = {"context": name} | use.row(prefixes, asked, seed=options.seed)
        whole = None if n_tokens is None else sum(n == len(each.target.ids) for n, each in zip(n_tokens, texts, strict=True))
        rows.append(row | {"crammed_whole": whole})
    return rows
