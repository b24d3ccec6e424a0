"""Where a free-running roll-out goes: plans fed back as if they had been read, beside the document as it really goes on.

Letters: G documents, S sentences read before, N sentences planned, D vector width, M real sentences.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lsm.bench import intervals
from lsm.bench.evaluation import MODEL, SAMPLED
from lsm.bench.judged import Documents
from lsm.decode.vectors import unit
from lsm.errors import UserError
from lsm.latent.diagnostics import effective_rank
from lsm.latent.heads import VectorSampling
from lsm.latent.rollout import rollout
from lsm.latent.space import judged_dims
from lsm.latent.transformer import LatentTransformer
from lsm.training.loop import step_seed

REAL, STANDING = "the document itself", "last vector kept"
_EDGES = (0, 1, 5, 20, 50, 100, 200, 500, 1000)
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Rollouts:
    """What was read of each document, and the ways in which it goes on."""

    read_GSD: np.ndarray
    """Unit vectors."""
    ways: dict[str, np.ndarray]
    """Name → [G, N, D]: unit vectors."""
    real_MD: np.ndarray
    """Every sentence of the documents, to be near to."""


def roll_out(
    model: LatentTransformer,
    documents: Documents,
    *,
    read: int,
    n: int,
    limit: int = 20,
    sampling: VectorSampling | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Rollouts:
    """Roll out `n` sentences after the first `read` of each document that is long enough, of at most `limit` documents; with `sampling`
    also a roll-out of draws. Of a model that lives in several parts the semantic one is kept.

    Raises:
        UserError: no document has read + n sentences.
    """
    require_long_enough(documents, read + n, n)
    every = documents.vectors()
    long_enough, sections = zip(
        *[pair for pair in zip(every, documents.sections(), strict=True) if len(pair[0]) >= read + n][:limit], strict=True
    )
    dims = judged_dims(model.config.parts)
    real_GND = np.stack([unit(z_SD[read : read + n, dims]) for z_SD in long_enough])
    read_GSD = np.stack([unit(z_SD[:read, dims]) for z_SD in long_enough])
    ways: dict[str, np.ndarray] = {}
    for way, drawn in ((MODEL, None), (SAMPLED, sampling)) if sampling else ((MODEL, None),):
        planned = []
        for g, (z_SD, section_S) in enumerate(zip(long_enough, sections, strict=True)):
            begun_SD, section_S = torch.from_numpy(np.asarray(z_SD[:read], dtype=np.float32)), torch.from_numpy(section_S[:read].copy())
            own = replace(drawn, seed=step_seed(drawn.seed, g)) if drawn else None
            planned.append(rollout(model, begun_SD, n, section_S=section_S, sampling=own).cpu().numpy()[:, dims])
            advance(n)
        ways[way] = np.stack(planned)
    standing_GND = np.repeat(read_GSD[:, -1:], n, axis=1)
    return Rollouts(read_GSD, ways | {REAL: real_GND, STANDING: standing_GND}, unit(np.concatenate(every)[:, dims]))


def require_long_enough(documents: Documents, wanted: int, n: int) -> None:
    """Raise `UserError` unless a document has `wanted` sentences, to be read and then planned, the latter `n` of them."""
    longest = max(map(len, documents.vectors()), default=0)
    if longest < wanted:
        raise UserError(
            f"--rollout {n}: no judged document has {wanted} sentences ({wanted - n} are read first, the longest has {longest}); "
            "ask for fewer"
        )


def measure(found: Rollouts, *, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Rows by way and span of steps, with 95 % intervals from resampling documents.

    Columns: cosine to the real sentence of the same place (`cosine_truth`), to the mean of what was read (`cosine_start`: 1 = never leaves
    it), to the vector before (`cosine_before`: 1 = stands still), Euclidean distance to the nearest real sentence of all judged documents
    but its own place (`l2_nearest`: a plan off the manifold lies far from all), and effective rank of the span's vectors over all
    documents (Roy & Vetterli 2007).
    """
    n_documents, n = found.ways[REAL].shape[:2]
    drawn_RG = intervals.draw(n_documents, resamples, seed)
    start_GD = unit(found.read_GSD.mean(1))
    edges = [edge for edge in _EDGES if edge < n] + [n]
    rows = []
    for way, z_GND in found.ways.items():
        before_GND = np.concatenate([found.read_GSD[:, -1:], z_GND[:, :-1]], axis=1)
        values_GN = {
            "cosine_truth": (z_GND * found.ways[REAL]).sum(-1),
            "cosine_start": np.einsum("gnd,gd->gn", z_GND, start_GD),
            "cosine_before": (z_GND * before_GND).sum(-1),
            "l2_nearest": _to_nearest(z_GND, found.real_MD, itself=way not in (MODEL, SAMPLED)),
        }
        for first, stop in itertools.pairwise(edges):
            document = np.repeat(np.arange(n_documents), stop - first)
            estimates = {name: intervals.mean(x_GN[:, first:stop].reshape(-1), document, drawn_RG) for name, x_GN in values_GN.items()}
            spread = effective_rank(torch.from_numpy(z_GND[:, first:stop].reshape(-1, z_GND.shape[-1])))
            steps = f"{first + 1}–{stop}" if stop > first + 1 else str(stop)
            about = {"way": way, "steps": steps, "last_step": stop, "n_documents": n_documents, "n": len(document)}
            rows.append({**about, "effective_rank": spread, **intervals.as_row(estimates)})
    return rows


def _to_nearest(z_GND: np.ndarray, real_MD: np.ndarray, *, itself: bool) -> np.ndarray:
    """Distance of each unit vector to the nearest real one, [G, N]; `itself`: it is one of them, and the second nearest counts."""
    flat_ND, real = torch.from_numpy(z_GND.reshape(-1, z_GND.shape[-1])), torch.from_numpy(real_MD)
    chunks = [(rows_ND @ real.T).topk(2 if itself else 1, dim=1).values[:, -1] for rows_ND in flat_ND.split(_ROWS_AT_ONCE)]
    return (2 - 2 * torch.cat(chunks).double().clamp(-1, 1)).sqrt().numpy().reshape(z_GND.shape[:2])
