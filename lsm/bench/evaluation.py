"""A run on the next-sentence scoreboard, beside its controls.

Letters: S sentences of a document, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lsm.bench.controls import (
    Places,
    PredictRows,
    Sections,
    document_key,
    fit_controls,
    other_documents_context,
    places_of,
    random_places,
    sections_of,
    shuffled_order,
    truncated,
    untuned_controls,
    within,
)
from lsm.bench.intervals import as_row
from lsm.bench.judged import Judged
from lsm.bench.next_sentence import Scoreboard, make_queries, measure
from lsm.errors import UserError
from lsm.latent.heads import VectorSampling
from lsm.latent.space import judged_dims, slices
from lsm.latent.transformer import LatentTransformer
from lsm.training.loop import step_seed

MODEL = "model"
SAMPLED = "model, one sample"
ORDER_SHUFFLED = "model, context in shuffled order"
OTHER_CONTEXT = "model, context of another document"
_BEST_BY = "recall_at_10"


def evaluate(
    model: LatentTransformer,
    judged: Judged,
    *,
    minimum_context: int = 3,
    shuffled_positions: int = 1000,
    sampling: VectorSampling | None = None,
    dims: slice | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
    advance: Callable[[str], None] = lambda name: None,
) -> Scoreboard:
    """The model (with `sampling` also one draw of its sampling head), its two broken contexts and all controls on the judged documents.

    `dims` of the vectors are judged, and are all that the controls know of them; None = the semantic part, where there is one.

    Raises:
        UserError: no document is longer than `minimum_context`, or the model predicts NaN.
    """
    documents, parts = judged.held_out.vectors(), judged.held_out.parts()
    if not any((part_S[minimum_context:] == 0).any() for part_S in parts):
        raise UserError(
            f"--minimum-context {minimum_context}: none of the {len(documents)} judged documents of {judged.held_out.corpus.path} "
            "is longer; lower it or encode longer documents"
        )
    dims = judged_dims(model.config.parts) if dims is None else dims
    if judged.train is None:
        controls = untuned_controls()
    else:
        train = [z_SD[:, dims] for z_SD in judged.train.vectors()]
        controls = fit_controls(train, judged.train.parts(), minimum_context=minimum_context, note=note)
    controls = {name: within(control, dims) for name, control in controls.items()}
    predict_rows = rows_predictor(model)

    sections = sections_of(documents, judged.held_out.sections())

    predict = predictor_of(model, sections)
    predictors = {
        MODEL: predict,
        **({SAMPLED: predictor_of(model, sections, sampling)} if sampling else {}),
        ORDER_SHUFFLED: shuffled_order(
            predict_rows,
            context=model.context,
            places=random_places(-(-shuffled_positions // len(documents)), minimum_context, seed),
            seed=seed,
            sections=sections,
        ),
        **({OTHER_CONTEXT: other_documents_context(predict, documents, sections=sections)} if len(documents) > 1 else {}),
        **controls,
    }
    if not shuffled_positions:
        del predictors[ORDER_SHUFFLED]
    return measure(documents, parts, predictors, minimum_context=minimum_context, dims=dims, advance=advance)


def part_rows(
    model: LatentTransformer,
    judged: Judged,
    *,
    minimum_context: int = 3,
    sampling: VectorSampling | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """What `evaluate` gives for the residual part and for all parts together, of a model that lives in several; empty for others."""
    places = slices(model.config.parts)
    if len(places) < 2:
        return {}
    boards = {
        name: evaluate(model, judged, minimum_context=minimum_context, shuffled_positions=0, sampling=sampling, dims=dims, seed=seed)
        for name, dims in {"residual": places["residual"], "all parts": slice(None)}.items()
    }
    return {name: board.rows(resamples=resamples, seed=seed) for name, board in boards.items()}


def context_curve(
    model: LatentTransformer, judged: Judged, lengths: Sequence[int], *, positions: int = 1000, resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """How much of what stands further back the model uses: two rows a length n, of the model reading its last n sentences only, and of
    the model reading its whole context with all but the last n in random order; and one of the model as it is.

    All on the same positions, those with more sentences before them than the largest length, `positions` in all. Each row also carries
    the model's lead over it with paired intervals (`lead_mrr` …): clear of zero, and what stands further back than n is used.

    Raises:
        UserError: no judged document is longer than the largest length, or the model's context is not.
    """
    require_long_enough(model, judged, farthest := max(lengths))
    documents, parts, sections, places = far_places(judged, farthest + 1, positions, seed)
    predict_rows = rows_predictor(model)
    predictors = {MODEL: truncated(predict_rows, context=model.context, places=places, sections=sections)}
    labels: dict[str, tuple[int, str]] = {}
    for n in lengths:
        for kind, predictor in (
            ("truncated", truncated(predict_rows, context=n, places=places, sections=sections)),
            (
                "shuffled beyond",
                shuffled_order(predict_rows, context=model.context, intact=n, places=places, seed=seed, sections=sections),
            ),
        ):
            predictors[f"{kind} {n}"] = predictor
            labels[f"{kind} {n}"] = n, kind
    board = measure(documents, parts, predictors, minimum_context=farthest + 1, dims=judged_dims(model.config.parts))
    rows = []
    for row in board.rows(resamples=resamples, seed=seed):
        n, kind = labels.get(row["predictor"], (model.context, "whole"))
        difference = board.difference(MODEL, row["predictor"], resamples=resamples, seed=seed)
        lead = as_row({f"lead_{metric}": estimate for metric, estimate in difference.items()})
        rows.append({"length": n, "context": kind, **row, **lead, "intervals": row["intervals"] | lead["intervals"]})
    return rows


def far_places(
    judged: Judged, minimum_context: int, positions: int, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray], Sections, Places]:
    """The judged documents, their `part` columns and sections, and `positions` places drawn from those with so much context."""
    documents, parts = judged.held_out.vectors(), judged.held_out.parts()
    queries = make_queries(documents, parts, minimum_context=minimum_context)
    n_queries = len(queries.position_Q)
    asked_P = np.random.default_rng(seed).choice(n_queries, size=min(positions, n_queries), replace=False)
    places = places_of(documents, queries.document_Q[asked_P], queries.position_Q[asked_P])
    return documents, parts, sections_of(documents, judged.held_out.sections()), places


def require_long_enough(model: LatentTransformer, judged: Judged, farthest: int) -> None:
    """Raise `UserError` unless a context curve up to `farthest` sentences can be drawn."""
    if farthest >= model.context:
        raise UserError(f"--context-curve {farthest}: the model looks back on {model.context} sentences; ask for fewer")
    if not any((part_S[farthest + 1 :] == 0).any() for part_S in judged.held_out.parts()):
        raise UserError(f"--context-curve {farthest}: no judged document of {judged.held_out.corpus.path} is longer; ask for fewer")


def rows_predictor(model: LatentTransformer, sampling: VectorSampling | None = None) -> PredictRows:
    """A latent transformer over rows; with `sampling` it draws."""

    def predict(z_BSD: np.ndarray, section_BS: np.ndarray | None = None) -> np.ndarray:
        sections = None if section_BS is None else torch.from_numpy(section_BS)
        predicted_BSD = model.predict(torch.from_numpy(z_BSD), section_BS=sections, sampling=sampling).float().cpu().numpy()
        if not np.isfinite(predicted_BSD).all():
            raise UserError("the model predicts NaN or infinity; check it and the corpus with `lsm inspect --verify`, or train it again")
        return predicted_BSD

    return predict


def predictor_of(model: LatentTransformer, sections: Sections, sampling: VectorSampling | None = None) -> Callable[..., np.ndarray]:
    """A latent transformer over documents; with `sampling` it draws, with noise of the document's own.

    Args:
        sections: as of `sections_of`; the predictor takes others as a second argument.
    """

    def predict(z_SD: np.ndarray, section_S: np.ndarray | None = None) -> np.ndarray:
        own = replace(sampling, seed=step_seed(sampling.seed, document_key(z_SD) % 2**32)) if sampling else None
        return rows_predictor(model, own)(z_SD[None], (sections(z_SD) if section_S is None else section_S)[None])[0]

    return predict


def best_control(rows: Sequence[dict[str, Any]]) -> str:
    """The control with the highest recall@10, chosen where it is judged: the strictest opponent."""
    controls = [row for row in rows if not row["predictor"].startswith(MODEL)]
    return max(controls, key=lambda row: row[_BEST_BY])["predictor"]


def differences(board: Scoreboard, rows: Sequence[dict[str, Any]], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Model minus every other row with paired intervals, the best control first."""
    best = best_control(rows)
    others = [best, *(row["predictor"] for row in rows if row["predictor"] not in (MODEL, best))]
    compared = []
    for other in others:
        estimates = board.difference(MODEL, other, resamples=resamples, seed=seed)
        compared.append(
            {
                "compared": f"model − {other}" + (" (best control)" if other == best else ""),
                "control": other,
                "is_best_control": other == best,
                **as_row(estimates),
                "clear": {metric: estimate.clear_of_zero() for metric, estimate in estimates.items()},
            }
        )
    return compared
