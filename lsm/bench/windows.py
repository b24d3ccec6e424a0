"""Windows longer than those trained on: is a model worth more, or less, when it reads several times its context?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, get_args

from lsm.bench.controls import truncated
from lsm.bench.evaluation import MODEL, far_places, rows_predictor
from lsm.bench.intervals import as_row
from lsm.bench.judged import Judged
from lsm.bench.next_sentence import measure
from lsm.errors import UserError
from lsm.latent.settings import RopeScaling
from lsm.latent.space import judged_dims
from lsm.latent.transformer import LatentTransformer


def longer_windows(
    model: LatentTransformer, judged: Judged, lengths: Sequence[int], *, positions: int = 1000, resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """One row a length: the model reading so many sentences, each prediction from a window of exactly this length; the first row is the
    context it was trained with. Rotary models read longer windows with plain positions and with both ways of scaling them.

    All on the same positions, those with as many sentences before them as the largest length, `positions` in all. `gain_mrr` … are paired
    differences to the first row: below zero, and the longer window harms.

    Raises:
        UserError: no judged document is long enough.
    """
    require_long_enough(judged, farthest := max(*lengths, model.context))
    documents, parts, sections, places = far_places(judged, farthest, positions, seed)
    shape = model.config.model
    known: tuple[RopeScaling, ...] = get_args(RopeScaling) if shape.rope_scale == 1 else (shape.rope_scaling,)
    scalings: list[RopeScaling | None] = [None, *(known if shape.positions != "alibi" else ())]
    ways = {MODEL: (model.context, None)} | {
        f"{n}, {scaling}": (n, scaling)
        for n, scaling in itertools.product(sorted(set(lengths)), scalings)
        if n != model.context and (n > model.context or scaling is None)
    }
    predictors = {
        name: truncated(rows_predictor(model.widened(n, scaling)), context=n, places=places, sections=sections)
        for name, (n, scaling) in ways.items()
    }
    board = measure(documents, parts, predictors, minimum_context=farthest, dims=judged_dims(model.config.parts))
    rows = []
    for row in board.rows(resamples=resamples, seed=seed):
        n, scaling = ways[row["predictor"]]
        difference = board.difference(row["predictor"], MODEL, resamples=resamples, seed=seed)
        gain = as_row({f"gain_{metric}": estimate for metric, estimate in difference.items()})
        about = {"length": n, "times": n / model.context, "positions": model.config.model.positions, "rope_scaling": scaling or "–"}
        rows.append({**about, **row, **gain, "intervals": row["intervals"] | gain["intervals"]})
    return rows


def require_long_enough(judged: Judged, farthest: int) -> None:
    """Raise `UserError` unless a judged document has a sentence to predict after `farthest` others."""
    if not any((part_S[farthest:] == 0).any() for part_S in judged.held_out.parts()):
        raise UserError(f"--context-lengths {farthest}: no judged document of {judged.held_out.corpus.path} is longer; ask for fewer")
