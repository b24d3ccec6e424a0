"""What the rows of `lsm bench cost` say: slopes, and the length from which one system is cheaper than another, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lsm.bench.cost_settings import PASSES, SYSTEMS
from lsm.bench.slopes import Crossing, crossing, neighbour_slopes, slope

_PASS_WORDS = {"forward": "Forward pass", "training": "Training step"}


def slopes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each system and pass with two lengths or more: exponents of the seconds, over all lengths and between neighbours."""
    found = []
    for kind in PASSES:
        for system, label in SYSTEMS.items():
            points = measured(rows, system, kind)
            if len(points) < 2:
                continue
            neighbours = neighbour_slopes(points)
            found.append(
                {
                    "system": system,
                    "label": label,
                    "pass": kind,
                    "slope": slope(list(points), list(points.values())),
                    "neighbours": [{"from": a, "to": b, "slope": exponent} for a, b, exponent in neighbours],
                    "steps": ", ".join(f"{exponent:.2f}" for *_, exponent in neighbours),
                }
            )
    return found


def crossings(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each latent system against each token-level one: where it becomes cheaper, within the lengths that both were measured at."""
    found = []
    for kind in PASSES:
        for other in (name for name in SYSTEMS if name.startswith("token")):
            for system in (name for name in SYSTEMS if name.startswith("latent")):
                cross = crossing(measured(rows, system, kind), measured(rows, other, kind))
                if cross is not None:
                    sentence = f"{_PASS_WORDS[kind]}: {_said(SYSTEMS[system], SYSTEMS[other], cross)}"
                    found.append({"pass": kind, "system": system, "than": other} | cross._asdict() | {"sentence": sentence})
    return found


def measured(rows: Sequence[dict[str, Any]], system: str, kind: str) -> dict[int, float]:
    """Tokens → median seconds of the cells that were run."""
    return {row["tokens"]: row["seconds"] for row in rows if (row["system"], row["pass"]) == (system, kind) and row["seconds"] is not None}


def _said(system: str, other: str, cross: Crossing) -> str:
    within = f"{cross.shortest:,} to {cross.longest:,} tokens"
    at_the_end = f"at {cross.longest:,} tokens it takes {_times(cross.ratio)} the time"
    if cross.kind == "always":
        return f"{system} is cheaper than {other} at every length measured ({within}); {at_the_end}."
    if cross.kind == "never":
        return f"{system} is never cheaper than {other} within the lengths measured ({within}); {at_the_end}."
    assert cross.at is not None
    words = "from about" if cross.kind == "from" else "only up to about"
    return f"{system} is cheaper than {other} {words} {float(f'{cross.at:.2g}'):,.0f} tokens (measured {within}); {at_the_end}."


def _times(ratio: float) -> str:
    return f"{ratio:.2g} of" if ratio < 1 else f"{ratio:.2g} times"
