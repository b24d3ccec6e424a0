"""What crammed vectors hold, counted honestly: tokens free-running beside teacher-forced ones, nats, and bytes beside those of the text.

Shape letters: B texts, T tokens, P vectors, H hidden width, S start tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lsm.bench.intervals import as_row, draw, mean
from lsm.bench.text_metrics import utf8_bytes, zstd_bytes
from lsm.lm.loss import frozen_prediction
from lsm.lm.tokens import n_agreeing, opening_ids

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

MEASURES = (
    "tokens_exact", "tokens_teacher_forced", "token_gain", "information_nats", "cross_entropy", "overreach_accuracy", "overreach_tokens",
    "utf8_bytes", "zstd_bytes", "lm_entropy_bytes",
)  # fmt: skip
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Held:
    """One text's vectors and the way to read them, whoever made them."""

    ids: list[int]
    """All tokens that were tried."""
    n_tokens: int
    """Tokens that the vectors are said to give back."""
    vectors_PH: Tensor
    told: Callable[[Tensor, Sequence[Sequence[int]]], tuple[Tensor, Tensor]]
    """vectors [B, P, H] and targets → mean cross-entropy [B] and right tokens [B], teacher-forced."""
    decode: Callable[[Tensor, Sequence[int]], list[list[int]]]
    """vectors [B, P, H] and lengths → tokens, free-running."""

    def greedy_tokens(self, vectors_PH: Tensor | None = None) -> int:
        """Tokens before the first error, of those that are said to be held."""
        if self.n_tokens == 0:
            return 0
        vectors_PH = self.vectors_PH if vectors_PH is None else vectors_PH
        return n_agreeing(self.decode(vectors_PH[None], [self.n_tokens])[0], self.ids)


@torch.no_grad()
def unconditioned(lm: FrozenLM, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy in nats of each token without any vector, float64 [T], and whether it is the most probable one."""
    start = torch.tensor(opening_ids(lm.tokens), device=lm.device)
    ids_T = torch.tensor(ids, dtype=torch.int64, device=lm.device)
    hidden_TH = lm.prefix_hidden(lm.embed(start)[None], ids_T[None])[0]
    loss_T, right_T = frozen_prediction(hidden_TH, lm.head_VH, ids_T)
    return loss_T.double().cpu().numpy(), right_T.cpu().numpy()


@torch.no_grad()
def capacity_row(lm: FrozenLM, held: Held, stages: Sequence[dict[str, Any]], *, teacher_forced: float) -> dict[str, Any]:
    """What one text's vectors hold.

    Args:
        stages: of its search: target, reached, accuracy, greedy_tokens.
        teacher_forced: share of right tokens after right tokens at which a target counts as held in the older way.
    """
    n = held.greedy_tokens()
    alone_T, right_T = unconditioned(lm, held.ids)
    row: dict[str, Any] = {"tokens_exact": n, "at_limit": n == len(held.ids), "certified": n == held.n_tokens}
    row["tokens_teacher_forced"] = max([n, *(stage["target"] for stage in stages if stage["accuracy"] >= teacher_forced)])
    failed = [stage for stage in stages if not stage["reached"] and stage["target"] > n]
    over = min(failed, key=lambda stage: (stage["target"], -stage["accuracy"], -stage["greedy_tokens"]), default=None)
    row["overreach_target"], row["overreach_accuracy"], row["overreach_tokens"] = (
        (None, None, None) if over is None else (over["target"], over["accuracy"], over["greedy_tokens"])
    )
    row["cross_entropy"] = float(alone_T.mean())
    if n:
        with_vectors_B, _ = held.told(held.vectors_PH[None], [held.ids[:n]])
        row["token_gain"] = n - int(right_T[:n].sum())
        row["information_nats"] = float(alone_T[:n].sum()) - n * float(with_vectors_B[0])
        row["cross_entropy_held"] = float(alone_T[:n].mean())
    else:
        row |= {"token_gain": 0, "information_nats": 0.0, "cross_entropy_held": None}
    text = lm.tokens.decode_exact([held.ids[:n]])[0]
    row["utf8_bytes"], row["zstd_bytes"] = int(utf8_bytes([text])[0]), int(zstd_bytes([text])[0])
    row["lm_entropy_bytes"] = math.ceil(alone_T[:n].sum() / math.log(2) / 8)
    row["text"] = text
    return row


def quantised_rows(held: Held, ways: dict[int, tuple[Tensor, int]]) -> list[dict[str, Any]]:
    """What is still given back exactly by vectors in fewer bits: `ways` maps bits to the vectors that a reader gets and their bytes."""
    found = []
    for bits, (vectors_PH, n_bytes) in ways.items():
        tokens = held.greedy_tokens(vectors_PH)
        found.append({"bits": bits, "tokens_exact": tokens, "exact": tokens == held.n_tokens if held.n_tokens else None, "bytes": n_bytes})
    return found


def summary(rows: Sequence[dict[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Means over the texts of each kind, form and number of vectors, with intervals from resampling texts (each of another document)."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["form"], row["vectors"], row["kind"]), []).append(row)
    found = []
    for (form, vectors, kind), mine in groups.items():
        drawn_RG = draw(len(mine), RESAMPLES, seed)
        which_N = np.arange(len(mine))

        def over(values: Sequence[Any], which_N: np.ndarray = which_N, drawn_RG: np.ndarray = drawn_RG) -> Any:
            return mean(np.array([math.nan if value is None else float(value) for value in values]), which_N, drawn_RG)

        estimates = {name: over([row[name] for row in mine]) for name in MEASURES}
        for index, quantised in enumerate(mine[0]["quantised"]):
            bits = f"int{quantised['bits']}"
            estimates[f"exact_{bits}"] = over([row["quantised"][index]["exact"] for row in mine])
            estimates[f"tokens_{bits}"] = over([row["quantised"][index]["tokens_exact"] for row in mine])
            estimates[f"bytes_{bits}"] = over([row["quantised"][index]["bytes"] for row in mine])
        if all(row.get("code") for row in mine):
            estimates["code_tokens"] = over([row["code"]["tokens_certified"] for row in mine])
            estimates["code_bytes"] = over([row["code"]["bytes"] for row in mine])
        label = f"{vectors} vector{'s' * (vectors > 1)}" + (", one pass" if form == "one-pass" else "")
        at_limit = sum(row["at_limit"] for row in mine)
        found.append(
            {"label": label, "form": form, "vectors": vectors, "kind": kind, "n": len(mine), "at_limit": at_limit} | as_row(estimates)
        )
    return found
