"""Rows with an input and one target or several (dialogue → summary, question and context → answer): JSONL files or hub data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsm.errors import UserError
from lsm.text.hub import hub_rows
from lsm.text.inputs import HubInput, InputFile, RecipeInput, expand_input, suffix_of
from lsm.text.rows import json_rows


@dataclass(frozen=True)
class Pair:
    """One example."""

    document: str
    """Rows of one document stand together in a split and are resampled together."""
    text: str
    targets: tuple[str, ...]
    """The first one is learned, all are references."""


@dataclass(frozen=True, kw_only=True)
class PairFields:
    """The names under which a row keeps its parts."""

    inputs: Sequence[str] = ("text",)
    """Joined by a line break, in this order."""
    target: str | None = "summaries"
    """A text or a list of texts; None = targets are not wanted."""
    document: str = "id"
    """Optional; the row's place stands in for it."""


def read_pairs(inputs: Sequence[str], fields: PairFields, *, limit: int | None = None) -> list[Pair]:
    """All rows of JSONL files (folders, globs, compressed ones) and of `hf:DATASET[:SPLIT]`; those with an empty part are left out.

    Raises:
        UserError: an input that cannot be read, or a row without the fields (naming it and the keys that it has).
    """
    pairs: list[Pair] = []
    for where, row in _rows(inputs):
        pair = _pair(where, row, fields)
        if pair is not None:
            pairs.append(pair)
        if len(pairs) == limit:
            break
    if not pairs:
        raise UserError(f"{' '.join(inputs)}: no row with an input and a target; give other inputs")
    return pairs


def _rows(inputs: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for value in inputs:
        found = _expanded(value)
        if isinstance(found, HubInput):
            yield from hub_rows(found.dataset, split=found.split)
            continue
        for file in found:
            if not str(suffix_of(file.path)).startswith(".jsonl"):
                raise UserError(f"{file.path}: rows with inputs and targets are read from .jsonl (also .gz .zst); convert it")
            yield from json_rows(file.path)


def _expanded(value: str) -> list[InputFile] | HubInput:
    found = expand_input(value, [])
    assert not isinstance(found, RecipeInput), "no recipe names were given"
    return found


def _pair(where: str, row: Any, fields: PairFields) -> Pair | None:
    wanted = [name for name in (*fields.inputs, fields.target) if name is not None]
    if not isinstance(row, Mapping) or any(name not in row for name in wanted):
        keys = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise UserError(f"{where} has not all of {', '.join(wanted)} (it has: {keys}); set --data.inputs and --data.target")
    listed = row[fields.target] if fields.target is not None else ()
    targets = tuple(str(target).strip() for target in (listed if isinstance(listed, list | tuple) else [listed]) if target)
    text = "\n".join(str(row[name]).strip() for name in fields.inputs if row[name])
    if not text or (fields.target is not None and not any(targets)):
        return None
    document = row.get(fields.document)
    return Pair(where if document is None else str(document), text, tuple(target for target in targets if target))
