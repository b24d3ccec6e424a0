"""The parts of `lsm evaluate` that judge words: predicted vectors worded, and the lexical forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsm.bench.judged import Judged
    from lsm.commands.evaluate import Options
    from lsm.latent.transformer import LatentTransformer

_EXAMPLES = 10


def words_of(options: Options, model: LatentTransformer, judged: Judged) -> Callable[[], dict[str, Any]]:
    """Loads encoder, decoder and LM and chooses the places; called, it words, judges, prints, and gives rows and examples."""
    import numpy as np
    import torch

    from lsm.bench import wording
    from lsm.bench.controls import exponential_mean, sections_of
    from lsm.bench.evaluation import MODEL, SAMPLED, predictor_of
    from lsm.commands.evaluate import encoder_of
    from lsm.decode.in_context import ContextDecoder
    from lsm.decode.load import DecoderSource
    from lsm.latent.anchor import BEST_DECAY
    from lsm.lm.frozen import FrozenLM
    from lsm.progress import Progress, say
    from lsm.report import tables
    from lsm.write.forecast import forecasts_for

    encoder, device = encoder_of(options, model), model.mask_vector.device
    decoder = DecoderSource(encoder=encoder.fingerprint(), adapter=options.adapter, device=device).prefix()
    same = decoder.lm.name == options.wording_lm
    lm = decoder.lm if same else FrozenLM.load(options.wording_lm, device=device)
    if same:
        say(f"  the words are judged by the LM that writes them, {lm.name}: --wording-lm names another", quiet=options.quiet)
    places = wording.choose_places(judged.held_out, options.wording, minimum_context=options.minimum_context, seed=options.seed)

    sections, drawn = sections_of(judged.held_out.vectors(), judged.held_out.sections()), options.sampling(model)
    predictors = {MODEL: predictor_of(model, sections)} | ({SAMPLED: predictor_of(model, sections, drawn)} if drawn else {})
    predictors[f"exponential mean {BEST_DECAY}"] = exponential_mean(BEST_DECAY)

    def lift(z_ND: np.ndarray) -> list[str]:
        vectors, section_GS = judged.held_out.vectors(), judged.held_out.sections()
        forecasts = forecasts_for(model, decoder, options.model)
        for z_D, g, s in zip(z_ND, places.document_N, places.position_N, strict=True):
            read_SD = torch.from_numpy(np.asarray(vectors[g][: s + 1], dtype=np.float32))
            forecasts.foresee(z_D, read_SD, torch.from_numpy(section_GS[g][: s + 1]))
        told = ContextDecoder(decoder, weight=0.0, forecast=forecasts, forecast_weight=options.forecast)
        return told.decode(z_ND, seed=options.seed)

    lifted = None
    if model.lexical is not None and options.forecast:
        if model.lexical.space.lm_sha256 == decoder.lm.sha256:
            lifted = lift
        else:
            say(f"  the run forecasts words of {model.lexical.space.lm}, {decoder.lm.name} writes: none are lifted", quiet=options.quiet)

    def find() -> dict[str, Any]:
        planned = wording.predicted_at(judged.held_out, places, predictors)
        said = wording.word(planned, places, decoder, seed=options.seed)
        if lifted is not None:
            said |= {f"{MODEL}, words lifted": lifted(planned[MODEL])}
            planned |= {f"{MODEL}, words lifted": planned[MODEL]}
        with Progress("judging words", len(said) * len(places.truth), "texts", quiet=options.quiet) as progress:
            rows = wording.measure(
                places, said, lambda texts: encoder.encode(texts).vectors, lm, planned=planned, resamples=options.resamples,
                seed=options.seed, advance=progress.advance,
            )  # fmt: skip
        tables.show(rows, tables.WORDING, title=f"What is predicted, in words ({len(places.truth)} places, judged by {lm.name})")
        examples = [
            {"context": places.context[k][-1]} | {name: texts[k] for name, texts in said.items()}
            for k in range(min(_EXAMPLES, len(places.truth)))
        ]
        return {"judge": lm.name, "judge_wrote": same, "rows": rows, "examples": examples}

    return find


def forecasts_of(options: Options, model: LatentTransformer, judged: Judged) -> Callable[[], list[dict[str, Any]]]:
    """Checks that the model's lexical forecast can be judged; called, it judges, prints, and gives the rows."""
    from lsm.bench import forecast
    from lsm.lm.frozen import FrozenLM
    from lsm.progress import Progress
    from lsm.report import tables

    assert model.lexical is not None
    lm = FrozenLM.load(options.lexical_lm or model.lexical.space.lm, device=model.mask_vector.device)
    lm.drop_layers()
    forecast.require_words(model, judged.held_out, lm)

    def find() -> list[dict[str, Any]]:
        with Progress("judging forecasts", len(judged.held_out.numbers), "documents", quiet=options.quiet) as progress:
            rows = forecast.judge(
                model, judged.held_out, lm, minimum_context=options.minimum_context, resamples=options.resamples,
                seed=options.seed, advance=progress.advance,
            )  # fmt: skip
        tables.show(rows, tables.FORECAST, title="Words of the next sentence (shares of their weight, inverse document frequency)")
        return rows

    return find
