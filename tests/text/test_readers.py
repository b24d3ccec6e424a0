"""Documents in: order, names, formats, bounded pieces."""

from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.errors import UserError
from lsm.text.inputs import InputFile
from lsm.text.plain import text_documents
from lsm.text.readers import input_bytes, iter_documents


def read(*inputs: Path | str, limit: int | None = None) -> list[tuple[str, str]]:
    return [(d.doc_id, d.text) for d in iter_documents([str(i) for i in inputs], limit=limit, note=lambda line: None)]


def write_rows(path: Path, rows: list[dict]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_rows_of_every_format(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": "One.", "id": "a", "title": "T"}, {"text": "", "id": "e", "title": ""}, {"text": "Zwö 😀.", "id": None, "title": None}]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_rows(path, rows)
    notes: list[str] = []
    documents = list(iter_documents([str(path)], note=notes.append))
    assert [(d.doc_id, d.text, d.source, d.title) for d in documents] == [
        ("a", "One.", path.name, "T"),
        (f"rows{suffix}#2", "Zwö 😀.", path.name, ""),
    ]
    assert notes == ["skipped 1 document without text"]


def test_chat_messages_become_paragraphs(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}]
    path = write_rows(tmp_path / "chat.jsonl", [{"messages": messages}])
    assert read(path) == [("chat.jsonl#0", "user: Hi.\n\nassistant: Hello.")]
    pq.write_table(pa.Table.from_pylist([{"messages": messages[:1]}]), tmp_path / "chat.parquet")
    assert read(tmp_path / "chat.parquet") == [("chat.parquet#0", "user: Hi.")]


def test_folder_is_recursive_and_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/y.txt", ".hidden/x.txt", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [name for name, _ in read(tmp_path)] == ["a/y.txt", "a/z.md", "b.txt"]
    assert [name for name, _ in read(f"{tmp_path}/*/*.txt")] == ["a/y.txt"]
    assert [name for name, _ in read(f"{tmp_path}/**/*.txt")] == ["a/y.txt", "b.txt"]
    assert [name for name, _ in read(f"{tmp_path}/a*")] == ["a/y.txt", "a/z.md"]
    assert [name for name, _ in read(tmp_path / "b.txt", tmp_path / "a")] == ["b.txt", "y.txt", "z.md"]
    assert len(read(tmp_path, limit=2)) == 2
    assert input_bytes([str(tmp_path)]) == len("a/y.txta/z.mdb.txt")


def test_text_is_kept_exactly(tmp_path: Path) -> None:
    text = "  Line\r\nnext\rlast \u2028é\n\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(tmp_path / "a.txt") == [("a.txt", text)]


def test_empty_found_files_are_skipped_and_named_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text(" \n")
    (tmp_path / "c.txt").write_text("c")
    assert read(tmp_path) == [("c.txt", "c")]
    with pytest.raises(UserError, match=r"a\.txt is empty"):
        read(tmp_path / "a.txt")
    with pytest.raises(UserError, match="no document with text"):
        read(tmp_path / "b.txt")


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab. \n\r\té😀"), max_size=400), st.integers(1, 50))
def test_pieces_of_a_long_file_add_up(tmp_path_factory: pytest.TempPathFactory, text: str, max_characters: int) -> None:
    path = tmp_path_factory.getbasetemp() / "long.txt"
    path.write_bytes(text.encode())
    documents = list(text_documents(InputFile(path, "long.txt"), max_characters=max_characters))
    assert "".join(d.text for d in documents) == (text if text.strip() else "")
    assert all(d.text.strip() for d in documents)
    if len(documents) > 1:
        assert [d.doc_id for d in documents] == [f"long.txt#{i:04d}" for i in range(len(documents))]


def test_long_files_are_cut_at_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsm.text.decoding._CHUNK_BYTES", 7)
    path = tmp_path / "long.txt"
    path.write_text("Para one é.\nLine.\n\n" * 30, encoding="utf-8")
    documents = list(text_documents(InputFile(path, "long.txt"), max_characters=60))
    assert all(d.text.endswith("\n\n") and len(d.text) <= 60 for d in documents)
    assert "".join(d.text for d in documents) == path.read_text(encoding="utf-8")


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "x", "id": 1}, {"text": "y", "id": "1"}])
    with pytest.raises(UserError, match="two documents are called '1'"):
        read(path)


def test_hub_is_refused_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSM_OFFLINE", "1")
    with pytest.raises(UserError, match="LSM_OFFLINE"):
        read("hf:someone/something:test")


def test_hub_rows_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict]:
        assert streaming
        if name != "someone/something":
            raise FileNotFoundError(f"Dataset '{name}' does not exist\non the hub")
        return [{"text": f"{split} one.", "id": None}, {"text": " "}, {"text": "two", "id": 5}]

    monkeypatch.delenv("LSM_OFFLINE", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read("hf:someone/something:test") == [("someone/something/test#0", "test one."), ("5", "two")]
    assert input_bytes(["hf:someone/something"]) is None
    with pytest.raises(UserError, match="cannot read hf:no/such:train: Dataset 'no/such' does not exist on the hub"):
        read("hf:no/such")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lsm\[hub-datasets\]'"):
        read("hf:someone/something")
