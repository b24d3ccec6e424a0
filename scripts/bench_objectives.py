"""Which objective makes a latent transformer that does not predict the mean: every one alone and mixtures, on the same data and steps.

    lsm encode-corpus TRAIN… --out CORPUS; lsm encode-corpus HELD_OUT… --out JUDGED   (for every domain)
    python scripts/bench_objectives.py --train CORPUS --judge wikipedia=JUDGED … --out DIR [--seeds 0,1,2 --variants "mse,mse + infonce"]

Runs lie in DIR/runs and resume; each scoreboard is written to DIR when it is done and passed over when it is there. All runs stand on one
scoreboard a domain, so that differences to MSE alone are paired. DIR/objectives.md is the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsm.bench import cloze, intervals, wording
from lsm.bench.controls import exponential_mean, fit_controls, sections_of
from lsm.bench.evaluation import MODEL, predictor_of, rows_predictor
from lsm.bench.judged import Documents, Judged, choose_documents
from lsm.bench.next_sentence import Predictor, measure
from lsm.bench.parts import finished
from lsm.commands.script import run_script
from lsm.commands.values import comma_separated, whole_numbers
from lsm.config import load_settings, settings_from, to_dict
from lsm.corpus.format import require_same_space
from lsm.corpus.reader import Corpus
from lsm.decode.load import DecoderSource
from lsm.encode.encoder import load_encoder
from lsm.errors import UserError
from lsm.files import atomic_write, sha256_file, write_json
from lsm.latent.anchor import BEST_DECAY
from lsm.latent.heads import VectorSampling
from lsm.latent.pretrain import Pretraining
from lsm.latent.saved import WEIGHTS, locate
from lsm.latent.settings import OBJECTIVES, PretrainSettings
from lsm.latent.transformer import LatentTransformer
from lsm.lm.frozen import FrozenLM
from lsm.progress import Progress, say
from lsm.provenance import choose_device, report
from lsm.report import tables
from lsm.training.loop import Trainer

_OFF = dict.fromkeys(OBJECTIVES, 0.0)
_MIXTURE = {"infonce": 1.0, "in_document": 0.1}


@dataclass(frozen=True)
class Variant:
    """One training of the table."""

    weights: dict[str, float]
    """Of the objectives; those not named are off."""
    sampler: str = "none"
    anchor: str = "attention"


VARIANTS = {
    "mse": Variant({"mse": 1.0}),
    "infonce": Variant({"infonce": 1.0}),
    "infonce in document": Variant({"in_document": 1.0}),
    "denoise": Variant({"denoise": 1.0}),
    "energy": Variant({"sampler": 1.0}, sampler="energy"),
    "flow": Variant({"sampler": 1.0}, sampler="flow"),
    "diffusion": Variant({"sampler": 1.0}, sampler="diffusion"),
    "mse + infonce": Variant(_MIXTURE | {"mse": 0.1}),
    "infonce + denoise": Variant(_MIXTURE | {"denoise": 0.1}),
    "infonce + energy": Variant(_MIXTURE | {"sampler": 1.0}, sampler="energy"),
    "infonce + flow": Variant(_MIXTURE | {"sampler": 1.0}, sampler="flow"),
    "infonce + lexical": Variant(_MIXTURE | {"lexical": 0.3}),
    "infonce + ahead": Variant(_MIXTURE | {"ahead": 0.3}),
    "everything": Variant(_MIXTURE | {"mse": 0.1, "denoise": 0.1, "sampler": 1.0, "lexical": 0.3}, sampler="energy"),
    "mse without anchor": Variant({"mse": 1.0}, anchor="none"),
    "infonce without anchor": Variant({"infonce": 1.0}, anchor="none"),
}
"""Those without anchor predict the next vector from nothing, as is published; the others correct a reading of what stands before it."""
REFERENCE = "mse"
_SEED, _ONE_SAMPLE = ", seed ", ", one sample"
CONTROL = f"exponential mean {BEST_DECAY}"
MINIMUM_CONTEXT = 3
COLUMNS = (
    tables.Column("predictor", "trained by", "text"),
    tables.Column("contrastive_accuracy", "contrastive accuracy", "share", interval=True),
    tables.Column("lead_contrastive_accuracy", "its lead over mse", "share", interval=True),
    tables.Column("document_contrastive_accuracy", "in-document contrastive accuracy", "share", interval=True),
    tables.Column("lead_document_contrastive_accuracy", "its lead over mse", "share", interval=True),
    tables.Column("recall_at_10", "recall@10", "share", interval=True),
    tables.Column("median_rank", "median rank", "count"),
    tables.Column("document_recall_at_1", "in-document recall@1", "share", interval=True),
    tables.Column("l2", "l2", "share"),
    tables.Column("l2_gap", "l2 − l2 to nearest", "share", interval=True),
    tables.Column("effective_rank", "effective rank", "count"),
    tables.Column("mean_pairwise_cosine", "pairwise cosine", "share"),
)


@dataclass
class Options:
    """What to train, on what, and what to judge it on."""

    train: Path
    """Corpus to train on."""
    judge: tuple[str, ...]
    """Domains: NAME=CORPUS, held out."""
    out: Path
    """Folder of runs and results."""
    config: Path = Path("configs/latent-10m.yaml")
    """Everything but the objectives."""
    variants: str = ",".join(VARIANTS)
    """What to train, each with the first of the seeds."""
    seeds: str = "0"
    repeated: str = ""
    """Variants to train with every one of the seeds; default: all."""
    also: tuple[str, ...] = ()
    """Further runs to judge beside them, such as fine-tunes (lsm pretrain --start-from): NAME=RUN."""
    cloze: Path | None = None
    """Stories with two endings."""
    limit_documents: int | None = None
    """Documents judged a domain."""
    temperature: float = 1.0
    """Of the draws of sampling heads."""
    wording: int = 0
    """Places of each domain at which all predictions are also worded, for mutual information."""
    wording_lm: str = "smollm2-135m-instruct"
    """LM that judges the words."""
    lexical_lm: str = "smollm2-135m-instruct"
    """LM whose words are forecast."""
    resamples: int = 1000
    device: str = "auto"


def settings_of(variant: str, base: PretrainSettings) -> PretrainSettings:
    """The settings of a variant: the base with other weights and another head."""
    raw = to_dict(base)
    wanted = VARIANTS[variant]
    raw["objectives"] |= _OFF | wanted.weights
    raw["model"] |= {"sampler": wanted.sampler, "anchor": wanted.anchor}
    return settings_from(PretrainSettings, raw, origin=variant)


def train(options: Options, device: torch.device) -> dict[str, Path]:
    """Train what is not trained yet; label → run folder, `--also` included."""
    base, runs = load_settings(PretrainSettings, options.config), {}
    if base.data.space != "semantic":
        raise UserError(f"--config {options.config}: data.space {base.data.space}; the table compares objectives in the semantic space")
    variants, seeds = comma_separated(options.variants), whole_numbers(options.seeds, "--seeds")
    repeated = comma_separated(options.repeated) if options.repeated else variants
    if unknown := [variant for variant in (*variants, *repeated) if variant not in VARIANTS]:
        raise UserError(f"--variants and --repeated {', '.join(unknown)}: choose from {', '.join(VARIANTS)}")
    for variant, seed in [(variant, seed) for seed in seeds for variant in variants if seed == seeds[0] or variant in repeated]:
        label = variant if seed == seeds[0] else f"{variant}{_SEED}{seed}"
        run = options.out / "runs" / f"{variant.replace(' ', '_')}-{seed}"
        settings = settings_of(variant, base)
        say(f"{label} → {run}")
        lexical_lm = FrozenLM.load(options.lexical_lm, device=device) if settings.objectives.lexical else None
        task = Pretraining.on_corpus(options.train, settings, lexical_lm=lexical_lm, seed=seed, device=device)
        Trainer(task, settings, run, seed=seed).train()
        runs[label] = run
    for name, _, path in (pair.partition("=") for pair in options.also):
        if not path or name in runs:
            raise UserError(f"--also {' '.join(options.also)}: give NAME=RUN, with a name that no variant has")
        runs[name] = Path(path)
    return runs


def _trained_as(label: str, run: Path) -> dict[str, Any] | str:
    """What tells one training from another: a variant's weights, or what a further run holds."""
    variant = VARIANTS.get(label.partition(_SEED)[0])
    return asdict(variant) if variant else sha256_file(locate(run) / WEIGHTS)


def predictors_of(runs: Mapping[str, Path], judged: Documents, device: torch.device, temperature: float) -> dict[str, Predictor]:
    """What each run expects, and one draw of those that draw."""
    found: dict[str, Predictor] = {}
    sections = sections_of(judged.vectors(), judged.sections())
    for label, run in runs.items():
        model = LatentTransformer.from_pretrained(run, device=device)
        found[label] = predictor_of(model, sections)
        if model.sampler is not None:
            found[label + _ONE_SAMPLE] = predictor_of(model, sections, VectorSampling(temperature=temperature))
    return found


def judge(options: Options, runs: Mapping[str, Path], domain: str, corpus: Corpus, device: torch.device) -> dict[str, Any]:
    """One domain's scoreboard, with paired differences to `REFERENCE`."""
    first = next(iter(runs.values()))
    model = LatentTransformer.from_pretrained(first, device=device)
    judged: Judged = choose_documents(first, model, corpus, Corpus.open(options.train), limit=options.limit_documents)
    assert judged.train is not None
    controls = fit_controls(judged.train.vectors(), judged.train.parts(), note=say)
    predictors = predictors_of(runs, judged.held_out, device, options.temperature) | controls
    with Progress(domain, len(predictors), "predictors") as progress:
        board = measure(judged.held_out.vectors(), judged.held_out.parts(), predictors, advance=lambda name: progress.advance(1, name))
    rows = board.rows(resamples=options.resamples)
    for row in rows:
        _, seeded, seed = row["predictor"].removesuffix(_ONE_SAMPLE).partition(_SEED)
        reference = REFERENCE + seeded + seed if REFERENCE + seeded + seed in runs else REFERENCE
        if reference not in runs:
            continue
        lead = board.difference(row["predictor"], reference, resamples=options.resamples)
        named = intervals.as_row({f"lead_{metric}": estimate for metric, estimate in lead.items()})
        row["intervals"] |= named.pop("intervals")
        row |= named
    return {"rows": rows, "seeds": over_seeds(rows), "notes": judged.notes}


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range over the seeds of every column, for what was trained with several; the range takes the place of the interval."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        sampled = row["predictor"].endswith(_ONE_SAMPLE)
        name = row["predictor"].removesuffix(_ONE_SAMPLE).partition(_SEED)[0] + (_ONE_SAMPLE if sampled else "")
        groups.setdefault(name, []).append(row)
    found = []
    for name, group in groups.items():
        if len(group) > 1:
            columns = [column.key for column in COLUMNS if column.key != "predictor"]
            values = {key: [float(row.get(key, np.nan)) for row in group] for key in columns}
            means = {key: float(np.mean(column)) for key, column in values.items()}
            ranges = {key: [min(column), max(column)] for key, column in values.items()}
            found.append({"predictor": f"{name} ({len(group)} seeds)"} | means | {"intervals": ranges})
    return found


def word(options: Options, runs: Mapping[str, Path], corpus: Corpus, device: torch.device) -> dict[str, Any]:
    """What each run's predictions say in one domain, through the shipped prefix decoder."""
    first = next(iter(runs.values()))
    model = LatentTransformer.from_pretrained(first, device=device)
    judged = choose_documents(first, model, corpus, Corpus.open(options.train), limit=options.limit_documents)
    encoder = load_encoder(model.config.encoder["name"], device=str(device))
    require_same_space(encoder.fingerprint(), model.config.encoder, what=f"encoder {encoder.name}")
    decoder = DecoderSource(encoder=encoder.fingerprint(), device=device).prefix()
    lm = decoder.lm if decoder.lm.name == options.wording_lm else FrozenLM.load(options.wording_lm, device=device)
    places = wording.choose_places(judged.held_out, options.wording, minimum_context=MINIMUM_CONTEXT, seed=0)
    predictors = predictors_of(runs, judged.held_out, device, options.temperature) | {CONTROL: exponential_mean(BEST_DECAY)}
    planned = wording.predicted_at(judged.held_out, places, predictors)
    said = wording.word(planned, places, decoder)
    with Progress("judging words", len(said) * len(places.truth), "texts") as progress:
        rows = wording.measure(
            places,
            said,
            lambda texts: encoder.encode(texts).vectors,
            lm,
            planned=planned,
            resamples=options.resamples,
            advance=progress.advance,
        )
    return {"rows": rows, "judge": lm.name, "said": {name: texts[:10] for name, texts in said.items()}}


def choose_endings(options: Options, runs: Mapping[str, Path], device: torch.device) -> dict[str, Any]:
    """Story Cloze by each run's vectors; the controls once."""
    assert options.cloze is not None
    stories = cloze.read_stories(options.cloze)
    models = {label: LatentTransformer.from_pretrained(run, device=device) for label, run in runs.items()}
    wanted = next(iter(models.values())).config.encoder
    encoder = load_encoder(wanted["name"], device=str(device))
    require_same_space(encoder.fingerprint(), wanted, what=f"encoder {encoder.name}")
    known: list[np.ndarray] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        known.extend([] if known else [encoder.encode(texts).vectors])  # the same texts for every model
        return known[0]

    leads: dict[str, np.ndarray] = {}
    for label, model in models.items():
        found = cloze.leads_by_vectors(stories, encode, rows_predictor(model))
        leads = {label: found.pop(MODEL)} | found | leads
    first = next(iter(runs))
    rows = cloze.score({MODEL: leads[first]} | leads, resamples=options.resamples)
    return {"rows": [row for row in rows if row["predictor"] != MODEL], "lead_of": first}


def main(options: Options) -> None:
    """Train, judge, and write the table."""
    device, why = choose_device(options.device)
    say(f"{device}: {why}")
    domains = {name: Path(path) for name, _, path in (pair.partition("=") for pair in options.judge)}
    if "cloze" in domains or not all(str(path) != "." for path in domains.values()):
        raise UserError(f"--judge {' '.join(options.judge)}: give NAME=CORPUS, with a name other than cloze")
    corpora = {name: Corpus.open(path) for name, path in domains.items()}
    runs = train(options, device)
    asked: dict[str, Any] = {
        "train": Corpus.open(options.train).fingerprint,
        "config": to_dict(load_settings(PretrainSettings, options.config)),
    }
    asked |= {
        "runs": {label: [run.name, _trained_as(label, run)] for label, run in runs.items()},
        "resamples": options.resamples,
    }
    asked |= {
        "resamples": options.resamples,
        "stories": sha256_file(options.cloze) if options.cloze else None,
        "limit_documents": options.limit_documents,
        "temperature": options.temperature,
    }
    told = asked | {"wording": options.wording, "wording_lm": options.wording_lm}
    text = ["# Objectives", ""]
    boards: list[tuple[str, Sequence[tables.Column], dict[str, Any], Callable[[], dict[str, Any]]]] = [
        (name, COLUMNS, asked | {"judged": corpus.fingerprint}, partial(judge, options, runs, name, corpus, device))
        for name, corpus in corpora.items()
    ]
    if options.wording:
        boards += [
            (f"{name}-words", tables.WORDING, told | {"judged": corpus.fingerprint}, partial(word, options, runs, corpus, device))
            for name, corpus in corpora.items()
        ]
    if options.cloze is not None:
        boards.append(("cloze", tables.CLOZE, asked, partial(choose_endings, options, runs, device)))
    for name, columns, on, make in boards:
        results: Any = finished(options.out / f"{name}.json", on)
        if results is None:
            results = make() | dict[str, Any](asked=on)
            write_json(options.out / f"{name}.json", report(results, seed=0, device=str(device), elapsed_seconds=0.0))
        tables.show(results["rows"], columns, title=name)
        text += [f"## {name}", "", tables.markdown(results["rows"], columns), ""]
        if results.get("seeds"):
            tables.show(results["seeds"], columns, title=f"{name}: mean and range over seeds")
            text += ["Mean and range over seeds:", "", tables.markdown(results["seeds"], columns), ""]
    with atomic_write(options.out / "objectives.md", "w") as handle:
        handle.write("\n".join(text))


if __name__ == "__main__":
    run_script(main, Options, __doc__)
