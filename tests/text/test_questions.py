"""Questions as SQuAD and HotpotQA keep them, locally and on the hub, and rows that are none."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lsm.errors import UserError
from lsm.text.questions import read_questions

LOCAL = {"id": "1", "title": "Mills", "text": "A mill.", "question": " What? ", "answers": ["mill", ""]}
SQUAD = {"id": "2", "title": "Mills", "context": "A mill.", "question": "What?", "answers": {"text": ["mill"], "answer_start": [2]}}
HOTPOT = {"id": "3", "context": {"title": ["A", "B"], "sentences": [["One. ", "Two."], ["Three."]]}, "question": "Which?", "answer": "two"}


def test_local_rows(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in (LOCAL, {**LOCAL, "answers": []})).encode()))
    (one,) = read_questions([str(path)])
    assert (one.article, one.text, one.question, one.answers) == ("Mills", "A mill.", "What?", ("mill",))


def test_rows_without_a_title_stand_by_their_text(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    rows = [{**LOCAL, "title": None}, {**LOCAL, "title": None, "question": "Where?"}, {**LOCAL, "title": None, "text": "Another."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second, third = read_questions([str(path)])
    assert first.article == second.article != third.article


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict]:
        asked.append((name, config, split))
        return [SQUAD, HOTPOT]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.delenv("LSM_OFFLINE", raising=False)
    squad, hotpot = read_questions(["hf:hotpotqa/hotpot_qa@distractor:validation"])
    assert asked == [("hotpotqa/hotpot_qa", "distractor", "validation")]
    assert (squad.text, squad.answers) == ("A mill.", ("mill",))
    assert (hotpot.text, hotpot.answers) == ("One. Two.\nThree.", ("two",))


def test_every_file_of_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(LOCAL).encode())
    (tmp_path / "squad_qa.jsonl").write_text(json.dumps({**LOCAL, "id": "2"}), encoding="utf-8")
    assert {one.id for one in read_questions([str(tmp_path)])} == {one.id for one in read_questions([f"{tmp_path}/*.jsonl"])} == {"1", "2"}


def test_damaged_encoding_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_bytes(json.dumps(LOCAL).encode() + b'\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"qa\.jsonl:2"):
        read_questions([str(path)])


@pytest.mark.parametrize("line, said", [("{", "not a JSON row"), ("[1]", "found list"), ('{"text": "a"}', "found text")])
def test_other_rows_are_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(json.dumps(LOCAL) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        read_questions([str(path)])
    assert "2" in str(caught.value) and "\n" not in str(caught.value)


def test_offline_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSM_OFFLINE", "1")
    with pytest.raises(UserError, match="LSM_OFFLINE"):
        read_questions(["hf:rajpurkar/squad:validation"])
