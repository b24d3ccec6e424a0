"""Questions with a text that answers them, as SQuAD keeps them: rows `text`, `question`, `answers`, optionally `title`, `id`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsm.assets import offline
from lsm.errors import UserError, missing_extra
from lsm.files import fingerprint
from lsm.text.compressed import opened
from lsm.text.inputs import HubInput, RecipeInput, expand_input


@dataclass(frozen=True)
class Question:
    """One question about one text."""

    id: str
    article: str
    """The title, which stands or falls together; where rows have none, a hash of the text."""
    text: str
    question: str
    answers: tuple[str, ...]
    """At least one."""


def read_questions(inputs: Sequence[str]) -> list[Question]:
    """All questions of the inputs: JSONL files (plain or compressed), folders of them, globs, or hf:DATASET[:SPLIT]; rows without an
    answer are left out.

    Raises:
        UserError: naming file and line: not JSON, or a row without text, question or answers.
    """
    return [question for value in inputs for question in _of_input(value)]


def _of_input(value: str) -> Iterator[Question]:
    found = expand_input(value, [])
    if isinstance(found, HubInput):
        yield from _questions(_hub_rows(found), f"hf:{found.dataset}:{found.split}")
        return
    assert not isinstance(found, RecipeInput), "no recipe was named"
    for file in found:
        if file.found and "qa" not in file.name:  # such as the contexts that lie beside the questions
            continue
        if ".jsonl" not in file.name:
            raise UserError(f"{file.path}: questions are read from .jsonl (also compressed); convert it")
        yield from _questions(_json_rows(file.path), str(file.path))


def _json_rows(path: Any) -> Iterator[Any]:
    with opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{path}:{number} is not a JSON row ({str(error).splitlines()[0]}); mend or delete that line"
                    ) from error


def _hub_rows(found: HubInput) -> Iterator[Any]:
    origin = f"hf:{found.dataset}:{found.split}"
    if offline():
        raise UserError(f"{origin} needs the network but LSM_OFFLINE=1 is set; unset it, or read a local file")
    try:
        from datasets import load_dataset  # ty: ignore[import-not-found]
    except ImportError as error:
        raise missing_extra("datasets", "hub-datasets") from error
    dataset, _, config = found.dataset.partition("@")  # hf:hotpotqa/hotpot_qa@distractor:validation
    try:
        yield from load_dataset(dataset, config or None, split=found.split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot read {origin}: {' '.join(str(error).split())[:300]}; check name, @CONFIG, split and network") from error


def _questions(rows: Iterable[Any], where: str) -> Iterator[Question]:
    for number, row in enumerate(rows, start=1):
        text, answers = _text_of(row), _answers_of(row)
        if not isinstance(row, Mapping) or not isinstance(text, str) or not isinstance(row.get("question"), str) or answers is None:
            keys = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise UserError(f"{where}, row {number}: wants text, question and answers, found {keys}; rename its keys")
        if answers and text.strip():
            article = str(row.get("title") or fingerprint(text)) if not isinstance(row.get("context"), Mapping) else fingerprint(text)
            yield Question(str(row.get("id", number)), article, text, row["question"].strip(), answers)


def _text_of(row: Any) -> Any:
    """`text`, or `context` as SQuAD (a string) and HotpotQA (titles with lists of sentences) have it on the hub."""
    if not isinstance(row, Mapping):
        return None
    context = row.get("text", row.get("context"))
    if isinstance(context, Mapping) and isinstance(context.get("sentences"), list):
        return "\n".join("".join(sentences) for sentences in context["sentences"])
    return context


def _answers_of(row: Any) -> tuple[str, ...] | None:
    found = row.get("answers", row.get("answer")) if isinstance(row, Mapping) else None
    found = found.get("text") if isinstance(found, Mapping) else found
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list | tuple) or not all(isinstance(answer, str) for answer in found):
        return None
    return tuple(answer for answer in found if answer.strip())
