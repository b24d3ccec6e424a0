"""Rows with inputs and targets: fields by name, several inputs and targets, empty parts, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lsm.errors import UserError
from lsm.text.pairs import Pair, PairFields, read_pairs


def write(path: Path, *rows: object) -> str:
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return str(path)


def test_fields_targets_and_documents(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl.gz", {"id": 7, "text": " a b ", "summaries": ["one", " two "]}, {"text": "c", "summaries": "three"}, ""
    )
    first, second = read_pairs([file], PairFields())
    assert first == Pair("7", "a b", ("one", "two")) and second.targets == ("three",) and second.document.endswith("a.jsonl.gz:2")
    qa = write(tmp_path / "q.jsonl", {"title": "T", "question": "Who?", "context": "He.", "answer": "He"})
    assert read_pairs([qa], PairFields(inputs=("question", "context"), target="answer", document="title")) == [
        Pair("T", "Who?\nHe.", ("He",))
    ]


def test_rows_with_an_empty_part_are_left_out_and_the_limit_holds(tmp_path: Path) -> None:
    rows = [{"text": "a", "summaries": []}, {"text": "", "summaries": ["x"]}, *({"text": f"t{n}", "summaries": ["s"]} for n in range(5))]
    file = write(tmp_path / "a.jsonl", *rows)
    assert [pair.text for pair in read_pairs([file], PairFields(), limit=2)] == ["t0", "t1"]
    with pytest.raises(UserError, match="no row with an input and a target"):
        read_pairs([write(tmp_path / "b.jsonl", *rows[:2])], PairFields())


@pytest.mark.parametrize(
    ("row", "words"),
    [({"text": "a"}, "not all of text, summaries .it has: text.*--data.inputs"), (["a"], "it has: list"), ("{", "is not a JSON row")],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_pairs([write(tmp_path / "a.jsonl", {"text": "a", "summaries": ["b"]}, row)], PairFields())
    assert "a.jsonl:2" in str(caught.value)


def test_bad_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"are read from \.jsonl"):
        read_pairs([str(tmp_path / "a.txt")], PairFields())
    with pytest.raises(UserError, match="LSM_OFFLINE"):
        read_pairs(["hf:knkarthick/samsum:test"], PairFields())
    with pytest.raises(UserError, match=r"glob, URL or hf:DATASET$"):
        read_pairs(["nowhere.jsonl"], PairFields())
