"""Exponents, extrapolation and crossings of known curves."""

from __future__ import annotations

import pytest

from lsm.bench.cost_findings import crossings
from lsm.bench.slopes import crossing, extrapolate, neighbour_slopes, slope

LENGTHS = (1000, 5000, 20000)


def power(exponent: float, factor: float) -> dict[int, float]:
    return {n: factor * n**exponent for n in LENGTHS}


def test_slope_is_the_exponent() -> None:
    assert slope(LENGTHS, list(power(1.7, 3e-6).values())) == pytest.approx(1.7)
    bent = {10: 1.0, 100: 10.0, 1000: 1000.0}
    assert [round(exponent, 6) for *_, exponent in neighbour_slopes(bent)] == [1, 2]
    assert extrapolate(bent, 10_000) == pytest.approx(100_000)
    assert extrapolate({10: 2.0}, 30, alone=2.0) == pytest.approx(18)


def test_crossing_lies_where_the_curves_meet() -> None:
    cross = crossing(power(1, 8.0), power(2, 1e-3))
    assert cross is not None and cross.kind == "from" and cross.at == pytest.approx(8000) and cross.ratio == pytest.approx(0.4)
    back = crossing(power(2, 1e-3), power(1, 8.0))
    assert back is not None and back.kind == "until" and back.at == pytest.approx(8000)


def test_no_crossing_within_the_range() -> None:
    cheaper, dearer = crossing(power(1, 1.0), power(2, 1.0)), crossing(power(2, 1.0), power(1, 1.0))
    assert cheaper is not None and (cheaper.kind, cheaper.at, cheaper.longest) == ("always", None, 20000)
    assert dearer is not None and dearer.kind == "never"
    assert crossing({1000: 1.0}, power(1, 1.0)) is None


def test_sentences_name_only_what_was_measured() -> None:
    rows = [
        {"system": system, "pass": "forward", "tokens": n, "seconds": seconds}
        for system, curve in (("token-full", power(2, 1e-3)), ("latent-encoding", power(1, 8.0)))
        for n, seconds in curve.items()
    ]
    rows[2]["seconds"] = None  # the longest of the token-level model was not run
    (found,) = crossings(rows)
    assert found["sentence"] == (
        "Forward pass: latent + encoding is never cheaper than token, full attention within the lengths measured (1,000 to 5,000 tokens); "
        "at 5,000 tokens it takes 1.6 times the time."
    )
