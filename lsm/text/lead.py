"""The control that needs no model: the first k turns (or sentences) of an input, k such that they are as long as targets are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsm.text.pairs import Pair
from lsm.text.segment import segment

_MOST = 12


def choose_lead(pairs: Sequence[Pair]) -> dict[str, Any]:
    """`unit` (turns where most inputs have several lines, else sentences) and the `k` whose words come nearest to the targets'."""
    unit = "turns" if np.median([pair.text.strip().count("\n") for pair in pairs]) >= 1 else "sentences"
    wanted = np.mean([len(pair.targets[0].split()) for pair in pairs])
    parts = [_parts(pair.text, unit) for pair in pairs]
    lengths = [np.mean([len(" ".join(some[:k]).split()) for some in parts]) for k in range(1, _MOST + 1)]
    return {"unit": unit, "k": int(np.argmin(np.abs(np.array(lengths) - wanted))) + 1}


def lead(text: str, *, unit: str, k: int) -> str:
    """The first k turns or sentences."""
    return " ".join(_parts(text, unit)[:k])


def _parts(text: str, unit: str) -> list[str]:
    if unit == "turns":
        return [line.strip() for line in text.split("\n") if line.strip()]
    return [sentence.text for sentence in segment(text)[1]]
