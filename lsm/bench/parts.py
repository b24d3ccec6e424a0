"""Benchmarks in parts: what was measured before is kept, and refused where it was measured otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsm.errors import UserError
from lsm.files import read_json


def finished(path: Path, asked: dict[str, Any]) -> Any | None:
    """The results in `path`, or None where there are none yet.

    Args:
        asked: everything that the numbers depend on; results carry it as `asked`.

    Raises:
        UserError: the results there are of something else.
    """
    if not path.exists():
        return None
    results = read_json(path)["results"]
    found = results.get("asked") or {}
    if found != asked:
        names = [name for name in dict.fromkeys([*found, *asked]) if found.get(name) != asked.get(name)]
        differing = "; ".join(f"{name} {found.get(name)} → {asked.get(name)}" for name in names)
        raise UserError(f"{path} was measured otherwise ({differing}); take another --out, or remove the file")
    return results
