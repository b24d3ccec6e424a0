"""How a cost grows with the length: slopes in log-log, extrapolation by them, and where two costs cross."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent k of y ∝ x^k by least squares on logarithms; at least two different x."""
    assert len(x) == len(y) >= 2
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def neighbour_slopes(points: Mapping[int, float]) -> list[tuple[int, int, float]]:
    """(shorter, longer, exponent) between each length and the next longer one."""
    return [(a, b, slope((a, b), (points[a], points[b]))) for a, b in pairwise(sorted(points))]


def extrapolate(points: Mapping[int, float], x: float, *, alone: float = 1.0) -> float:
    """y at `x`, beyond the longest point, with the slope of the last two; a single point grows with the exponent `alone`."""
    last = max(points)
    exponent = neighbour_slopes(points)[-1][2] if len(points) > 1 else alone
    return points[last] * (x / last) ** exponent


class Crossing(NamedTuple):
    """Where one cost becomes smaller than another within the lengths that both were measured at."""

    kind: str
    """always, never, from (smaller beyond `at`) or until (smaller only before `at`)."""
    at: float | None
    shortest: int
    longest: int
    ratio: float
    """One cost over the other at the longest length."""


def crossing(cost: Mapping[int, float], other: Mapping[int, float]) -> Crossing | None:
    """Where `cost` becomes smaller than `other`, interpolated in log-log; None without two common lengths."""
    lengths = sorted(set(cost) & set(other))
    if len(lengths) < 2:
        return None
    lead = [math.log(other[n] / cost[n]) for n in lengths]
    ends = lengths[0], lengths[-1], cost[lengths[-1]] / other[lengths[-1]]
    changes = [k for k, (a, b) in enumerate(pairwise(lead)) if (a > 0) != (b > 0)]
    if not changes:
        return Crossing("always" if lead[-1] > 0 else "never", None, *ends)
    k = changes[-1]
    share = lead[k] / (lead[k] - lead[k + 1])
    at = math.exp(math.log(lengths[k]) + share * math.log(lengths[k + 1] / lengths[k]))
    return Crossing("from" if lead[-1] > 0 else "until", at, *ends)
