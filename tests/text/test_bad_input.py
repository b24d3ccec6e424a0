"""Every kind of bad input gives one line that names the file and the way out."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsm.errors import UserError
from lsm.text import decoding, rows
from lsm.text.readers import iter_documents

_ROW = b'{"text": "fine"}\n'


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(iter_documents([str(path)], note=lambda line: None))
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line
    return line


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"text \x00\x01\x02 and more bytes that no text holds", "NUL byte at offset 5"),
        ("a.txt", b"%PDF-1.7 ...", "PDF"),
        ("a.txt", "Grüße".encode("utf-16"), "iconv -f utf-16 -t utf-8"),
        ("a.txt", "Some plain words.".encode("utf-16-le"), "iconv -f utf-16le -t utf-8"),
        ("a.txt", "Some plain words.".encode("utf-16-be"), "iconv -f utf-16be -t utf-8"),
        ("a.txt", "Some plain words.".encode("utf-32"), "UTF-32"),
        ("a.txt", "Un café noir".encode("latin-1"), "0xe9 at offset 6.*iconv -f latin1"),
        ("a.txt", "It’s".encode("cp1252"), "windows-1252"),
        ("a.txt", "cut é".encode()[:-1], "0xc3 at offset 4"),
        ("a.jsonl", "Some plain words.".encode("utf-16"), "iconv -f utf-16 "),
        ("a.jsonl", _ROW + b'{"text": "caf\xe9"}\n', "a.jsonl:2 is not UTF-8"),
        ("a.jsonl", _ROW + _ROW + b'{"text": "cu', "a.jsonl:3 is not a JSON row"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1 .*nested"),
        ("a.jsonl", _ROW + b'{"body": "x"}\n', "a.jsonl:2 has no 'text'.*keys: body"),
        ("a.jsonl", b"[1, 2]\n", "a.jsonl:1 is a list"),
        ("a.jsonl", b'{"text": 5}\n', "a.jsonl:1: 'text' is a int"),
        ("a.jsonl", b'{"messages": [{"content": "x"}]}\n', "'role' and 'content'"),
        ("a.jsonl", b'{"text": "half \\ud83d"}\n', "a.jsonl:1 holds half a character"),
        ("a.jsonl", b'{"text": ""}\n', "no document"),
        ("a.jsonl.gz", gzip.compress(_ROW * 5000, mtime=0)[:60], "not a whole gzip archive"),
        ("a.jsonl.gz", _ROW, "not a whole gzip archive"),
        ("a.jsonl.zst", pa.compress(_ROW * 50, codec="zstd", asbytes=True)[:-9], "not a whole zstd archive"),
        ("a.jsonl", gzip.compress(_ROW, mtime=0), "gzip-compressed"),
        ("a.parquet", b"PAR1 and then nothing of use", "not a whole parquet file"),
        ("a.pdf", b"%PDF", "ends in .pdf; readable are .txt"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert re.search(expected, refusal(path)), refusal(path)


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.txt")
    assert "it is empty" in refusal(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"x")
    assert "only .bin" in refusal(tmp_path)
    with pytest.raises(UserError, match="matches no readable file"):
        list(iter_documents([f"{tmp_path}/*.txt"]))
    with pytest.raises(UserError, match="did you mean the recipe sotu"):
        list(iter_documents(["sotuu"]))
    with pytest.raises(UserError, match="START-STOP"):
        list(iter_documents(["samples:five"]))


def test_parquet_without_a_text_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"], "url": ["y"]}), path)
    assert "its columns are body, url" in refusal(path)
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert "row 0: 'text' is a int" in refusal(path)


def test_lines_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LINE_LIMIT_BYTES", 2**20)
    monkeypatch.setattr(rows, "LINE_LIMIT_BYTES", 2**20)
    path = tmp_path / "a.txt"
    path.write_bytes(b"short\n" + b"x" * (2**20 + 5))
    assert "single line of more than 1 MiB" in refusal(path)
    path = tmp_path / "a.jsonl"
    path.write_bytes(_ROW + b'{"text": "' + b"x" * 2**20 + b'"}\n')
    assert "a.jsonl:2 is longer than 1 MiB" in refusal(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    assert "cannot read" in refusal(path)
