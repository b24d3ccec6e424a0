"""`lsm evaluate`: how well a run tells the next sentence, beside its controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from lsm.commands.sampling_options import SamplingOptions
from lsm.commands.values import whole_numbers

if TYPE_CHECKING:
    from lsm.bench.judged import Documents
    from lsm.encode.encoder import SentenceEncoder
    from lsm.latent.transformer import LatentTransformer


@dataclass(kw_only=True)
class Options(SamplingOptions):
    """Next-sentence scoreboard of a run."""

    model: Positional[Path]
    """Run of lsm pretrain, a folder with a saved latent transformer, or the name of a shipped one."""
    corpus: Path
    """Corpus to judge on: of the run's own training corpus its held-out documents, of another all that the run was not trained on."""
    train_corpus: Path | None = None
    """Training corpus, when --corpus is another: controls that learn (ridge, corpus mean, decay) are fitted on it."""
    limit_documents: int | None = None
    """Judge on no more than so many documents."""
    minimum_context: int = 3
    """Sentences that must have been read before a prediction counts."""
    shuffled_positions: int = 1000
    """Positions in all, spread over the documents, at which the model is tried with its context in shuffled order; each costs a row."""
    context_curve: str = ""
    """Numbers such as 1,5,20,100: also try the model with only the last so many sentences, and with all before them in random order, on
    --shuffled-positions places (at least one) that have more behind them."""
    context: int | None = None
    """Let the model look back on so many sentences, whatever it was trained with."""
    rope_scaling: Literal["none", "ntk", "linear"] = "none"
    """Fit rotary positions to a --context longer than trained: ntk raises their base, linear divides the positions."""
    context_lengths: str = ""
    """Numbers such as 128,256,512: also let the model read windows of so many sentences beside those it was trained with (rotary positions
    plain and scaled), on --shuffled-positions places that have as many before them."""
    rollout: int = 0
    """Also feed predictions back as if they had been read, so many sentences on, in up to 20 documents that are long enough."""
    rollout_read: int = 10
    """Sentences that are read before a roll-out."""
    cloze: Path | None = None
    """Stories with two endings (.jsonl[.gz]: sentences, endings, right = 1 or 2): also choose by the predicted vector (Story Cloze)."""
    cloze_stories: int | None = None
    """Choose in no more than so many stories."""
    cloze_lm: str | None = None
    """Also let this frozen LM choose, by likelihood."""
    wording: int = 0
    """Also word what is predicted at so many places (prefix decoder), beside the true vector worded and the true sentence: text scores, and
    how much likelier an LM finds the text after the ten sentences before it (mutual information)."""
    wording_lm: str = "smollm2-135m-instruct"
    """LM that judges the words; one that took no part in writing them is fairer."""
    lexical_lm: str | None = None
    """Where the LM lies whose words the run forecasts, when it is not the asset of its name."""
    forecast: float = 0.5
    """With --wording, and a run that forecasts words: lift them by so many times their log odds in one more row."""
    adapter: str | None = None
    """Adapter that words: a folder or the name of a shipped one; default: the shipped one for the encoder."""
    encoder: str | None = None
    """Where the encoder of stories and words lies, when it is not the asset of the model's."""
    resamples: int = 1000
    """Bootstrap resamples of documents behind each 95 % interval; 0 = no intervals."""
    plots: Path | None = None
    """Folder for charts: next-sentence.png, and with the options above context-curve.png and drift.png."""


def run(options: Options) -> dict[str, Any]:
    """Score, print both tables, and return them."""
    from lsm.bench import evaluation
    from lsm.bench.judged import choose_documents
    from lsm.commands.evaluate_words import forecasts_of, words_of
    from lsm.corpus.reader import Corpus
    from lsm.errors import UserError
    from lsm.latent.transformer import LatentTransformer
    from lsm.progress import Progress, say
    from lsm.provenance import choose_device
    from lsm.report import tables

    for name, value, least in (
        ("--minimum-context", options.minimum_context, 1),
        ("--limit-documents", options.limit_documents, 1),
        ("--resamples", options.resamples, 0),
        ("--shuffled-positions", options.shuffled_positions, 0),
        ("--context", options.context, 2),
        ("--cloze-stories", options.cloze_stories, 1),
        ("--wording", options.wording, 0),
        ("--forecast", options.forecast, 0),
        ("--rollout", options.rollout, 0),
        ("--rollout-read", options.rollout_read, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{name} {value}: must be at least {least}")
    lengths = whole_numbers(options.context_curve, "--context-curve") if options.context_curve else []
    if lengths and min(lengths) < 1:
        raise UserError(f"--context-curve {options.context_curve}: each number must be at least 1")
    windows = whole_numbers(options.context_lengths, "--context-lengths") if options.context_lengths else []
    if windows and min(windows) < 2:
        raise UserError(f"--context-lengths {options.context_lengths}: each number must be at least 2")
    if options.context is None and options.rope_scaling != "none":
        raise UserError(f"--rope-scaling {options.rope_scaling} needs --context N, the length to scale for")
    if options.cloze is None and (options.cloze_lm or options.cloze_stories):
        raise UserError("--cloze-lm and --cloze-stories need --cloze FILE")
    device, why = choose_device(options.device)
    model = LatentTransformer.from_pretrained(options.model, device=device)
    sampling = options.sampling(model)
    if (options.cloze or options.wording) and model.config.parts:
        raise UserError("--cloze and --wording judge semantic vectors alone, and this model also reads learned codes; leave them out")
    trained_model = model
    if options.context is not None:
        model = model.widened(options.context, None if options.rope_scaling == "none" else options.rope_scaling)
    corpus = Corpus.open(options.corpus)
    train_corpus = Corpus.open(options.train_corpus) if options.train_corpus else None
    judged = choose_documents(options.model, model, corpus, train_corpus, limit=options.limit_documents)

    def note(text: str) -> None:
        say(f"  {text}", quiet=options.quiet)

    say(f"judging {options.model} on {len(judged.held_out.numbers)} documents ({device}: {why})", quiet=options.quiet)
    for text in judged.notes:
        note(text)
    # What can be refused is refused before the long work.
    if lengths:
        evaluation.require_long_enough(model, judged, max(lengths))
    if windows:
        from lsm.bench.windows import longer_windows, require_long_enough

        require_long_enough(judged, max(*windows, trained_model.context))
    if options.rollout:
        from lsm.bench import drift

        drift.require_long_enough(judged.held_out, options.rollout_read + options.rollout, options.rollout)
    choose_endings = _chooser(options, model) if options.cloze else None
    find_words = words_of(options, model, judged) if options.wording else None
    judge_forecasts = forecasts_of(options, model, judged) if model.lexical is not None and corpus.keeps_text else None
    with Progress("scoring", None, "predictors", quiet=options.quiet) as progress:
        board = evaluation.evaluate(
            model,
            judged,
            minimum_context=options.minimum_context,
            shuffled_positions=options.shuffled_positions,
            sampling=sampling,
            seed=options.seed,
            note=note,
            advance=lambda name: progress.advance(1, name),
        )
    rows = board.rows(resamples=options.resamples, seed=options.seed)
    compared = evaluation.differences(board, rows, resamples=options.resamples, seed=options.seed)
    candidates = f"{rows[0]['n_candidates']:,} candidates, {rows[0]['n_documents']} documents, 95 % intervals over documents"
    tables.show(rows, tables.NEXT_SENTENCE, title=f"Next sentence ({candidates})")
    tables.show(compared, tables.DIFFERENCE, title="Paired differences (positive = the model is better)")
    by_part = evaluation.part_rows(
        model, judged, minimum_context=options.minimum_context, sampling=sampling, resamples=options.resamples, seed=options.seed
    )
    for part, part_rows in by_part.items():
        tables.show(part_rows, tables.NEXT_SENTENCE, title=f"The same, judged by: {part} (the first table: by the semantic part)")
    chance = rows[0]["document_chance"]
    print(f"in-document recall@1 by chance: {chance:.3f}")
    if options.plots:
        from lsm.report.plots import plot_next_sentence

        options.plots.mkdir(parents=True, exist_ok=True)
        print(f"plot in {plot_next_sentence(rows, options.plots / 'next-sentence.png')}")
    curve = []
    if lengths:
        curve = evaluation.context_curve(
            model, judged, lengths, positions=max(1, options.shuffled_positions), resamples=options.resamples, seed=options.seed
        )
        tables.show(curve, tables.CONTEXT_CURVE, title="What the model uses of its context")
        if options.plots:
            from lsm.report.plots import plot_context_curve

            print(f"plot in {plot_context_curve(curve, options.plots / 'context-curve.png')}")
    widened = []
    if windows:
        widened = longer_windows(
            trained_model, judged, windows, positions=max(1, options.shuffled_positions), resamples=options.resamples, seed=options.seed
        )
        tables.show(widened, tables.WINDOWS, title=f"Windows of other lengths ({trained_model.config.model.positions})")
    return {
        "wording": find_words() if find_words else {},
        "forecast": judge_forecasts() if judge_forecasts else [],
        "windows": widened,
        "cloze": choose_endings() if choose_endings else [],
        "drift": _drift(options, model, judged.held_out) if options.rollout else [],
        "context_curve": curve,
        "rows": rows,
        "differences": compared,
        "parts": by_part,
        "best_control": evaluation.best_control(rows),
        "notes": judged.notes,
    }


def _chooser(options: Options, model: LatentTransformer) -> Callable[[], list[dict[str, Any]]]:
    """Reads the stories and loads what chooses; called, it chooses and gives the rows."""
    from lsm.bench import cloze
    from lsm.bench.evaluation import rows_predictor
    from lsm.lm.frozen import FrozenLM
    from lsm.progress import Progress
    from lsm.report import tables

    assert options.cloze is not None
    stories = cloze.read_stories(options.cloze, limit=options.cloze_stories)
    encoder = encoder_of(options, model)
    lm = FrozenLM.load(options.cloze_lm, device=model.mask_vector.device) if options.cloze_lm else None

    def choose() -> list[dict[str, Any]]:
        leads = cloze.leads_by_vectors(stories, lambda texts: encoder.encode(texts).vectors, rows_predictor(model))
        if lm is not None:
            with Progress("LM reads", len(stories), "stories", quiet=options.quiet) as progress:
                leads |= cloze.leads_by_likelihood(stories, lm, progress.advance)
        rows = cloze.score(leads, resamples=options.resamples, seed=options.seed)
        tables.show(rows, tables.CLOZE, title=f"Which of two endings ({len(stories):,} stories)")
        return rows

    return choose


def encoder_of(options: Options, model: LatentTransformer) -> SentenceEncoder:
    """The encoder whose vectors the model reads.

    Raises:
        UserError: `--encoder` is another.
    """
    from lsm.corpus.format import encoder_line, same_space
    from lsm.encode.encoder import load_encoder
    from lsm.errors import UserError

    if model.config.encoder.get("context_sentences"):
        raise UserError(
            "--cloze and --wording: the model reads vectors of sentences in context, which are made by encode-corpus alone; leave them out"
        )
    encoder = load_encoder(options.encoder or model.config.encoder["name"], device=options.device)
    if not same_space(encoder.fingerprint(), model.config.encoder):
        raise UserError(
            f"--encoder {encoder.name} gives vectors of {encoder_line(encoder.fingerprint())}, the model reads those of "
            f"{encoder_line(model.config.encoder)}, which is needed to encode texts for it"
        )
    return encoder


def _drift(options: Options, model: LatentTransformer, documents: Documents) -> list[dict[str, Any]]:
    from lsm.bench import drift
    from lsm.progress import Progress
    from lsm.report import tables

    with Progress("rolling out", None, "sentences", quiet=options.quiet) as progress:
        found = drift.roll_out(
            model, documents, read=options.rollout_read, n=options.rollout, sampling=options.sampling(model), advance=progress.advance
        )
    rows = drift.measure(found, resamples=options.resamples, seed=options.seed)
    tables.show(rows, tables.DRIFT, title=f"Roll-outs of {rows[0]['n_documents']} documents after {options.rollout_read} sentences")
    if options.plots:
        from lsm.report.plots import plot_drift

        print(f"plot in {plot_drift(rows, options.plots / 'drift.png')}")
    return rows
