"""A few questions on texts written for these tests, and the stub LM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lsm.lm.frozen import FrozenLM
from lsm.text.questions import Question, read_questions

NAMES, TOWNS = ("Anna", "Thomas", "Maria", "Ruth"), ("Leeds", "Bath", "York")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def question_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "toy.jsonl", range(8))


@pytest.fixture(scope="session")
def other_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions on houses that `question_file` does not speak of."""
    return write_questions(tmp_path_factory.mktemp("questions") / "other.jsonl", range(20, 28))


def write_questions(path: Path, numbers: range) -> Path:
    rows = []
    for number in numbers:
        name, town, year = NAMES[number % 4], TOWNS[number % 3], 1800 + number
        text = f"{name} lived in {town}. The house was built in {year}."
        for question, answer in (("Who lived there?", name), ("When was it built?", str(year))):
            rows.append({"id": f"{number}", "title": f"house {number}", "text": text, "question": question, "answers": [answer]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def questions(question_file: Path) -> list[Question]:
    return read_questions([str(question_file)])


@pytest.fixture(scope="session")
def lm() -> FrozenLM:
    return FrozenLM.load("stub")
