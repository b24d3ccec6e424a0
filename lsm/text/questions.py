"""Questions with a text that answers them, as SQuAD keeps them: rows `text`, `question`, `answers`, optionally `title`, `id`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsm.errors import UserError
from lsm.files import fingerprint
from lsm.text.hub import hub_rows
from lsm.text.inputs import HubInput, RecipeInput, expand_input, suffix_of
from lsm.text.rows import json_rows


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
    """All questions of the inputs: JSONL files (plain or compressed), folders of them, globs, or hf:DATASET[@CONFIG][:SPLIT]; rows
    without an answer are left out.

    Raises:
        UserError: an input that cannot be read, or a row without text, question or answers (naming its place).
    """
    return [question for value in inputs for question in _of_input(value)]


def others(questions: Sequence[Question]) -> dict[str, str]:
    """For each text one of another article, or at least another text: the shuffled control. Nothing where there is one text only."""
    article = {one.text: one.article for one in questions}
    texts = list(article)
    half = max(1, len(texts) // 2)
    found = {}
    for place, text in enumerate(texts):
        candidates = (texts[(place + half + step) % len(texts)] for step in range(len(texts)))
        other = next((one for one in candidates if article[one] != article[text]), texts[(place + half) % len(texts)])
        if other != text:
            found[text] = other
    return found


def _of_input(value: str) -> Iterator[Question]:
    found = expand_input(value, [])
    if isinstance(found, HubInput):
        yield from _questions(hub_rows(found.dataset, split=found.split))
        return
    assert not isinstance(found, RecipeInput), "no recipe was named"
    for file in found:
        if not str(suffix_of(file.path)).startswith(".jsonl"):
            raise UserError(f"{file.path}: questions are read from .jsonl (also compressed); convert it")
        yield from _questions(json_rows(file.path))


def _questions(rows: Iterable[tuple[str, Any]]) -> Iterator[Question]:
    for where, row in rows:
        text, answers = _text_of(row), _answers_of(row)
        if not isinstance(row, Mapping) or not isinstance(text, str) or not isinstance(row.get("question"), str) or answers is None:
            keys = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise UserError(f"{where}: wants text, question and answers, found {keys}; rename its keys")
        if answers and text.strip():
            article = str(row.get("title") or fingerprint(text)) if not isinstance(row.get("context"), Mapping) else fingerprint(text)
            yield Question(str(row.get("id", where)), article, text, row["question"].strip(), answers)


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
