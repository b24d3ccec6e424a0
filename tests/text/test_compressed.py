"""Compressed inputs read as the plain ones do; an archive that was cut short is named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from lsm.errors import UserError
from lsm.text.readers import input_bytes, iter_documents

PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
TEXTS = {"a.txt": "One line, été.\n\nAnother one.\n", "b.md": "# Head\n\nA text.\n", "c.jsonl": '{"text": "a row"}\n{"text": "two"}\n'}


def documents(folder: Path) -> list[tuple[str, str, str]]:
    return [(document.doc_id, document.text, document.title) for document in iter_documents([str(folder)])]


@pytest.mark.parametrize("ending", PACKED)
def test_as_the_plain_ones(tmp_path: Path, ending: str) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "plain" / name).write_text(text, encoding="utf-8")
        half = len(text) // 2  # two frames, as `cat a.gz b.gz` makes them
        frames = PACKED[ending](text[:half].encode()) + PACKED[ending](text[half:].encode())
        (tmp_path / "packed" / f"{name}{ending}").write_bytes(frames)
    found = documents(tmp_path / "packed")
    assert [(doc_id.replace(ending, ""), text, title) for doc_id, text, title in found] == documents(tmp_path / "plain")
    assert all(ending in doc_id for doc_id, _, _ in found) and input_bytes([str(tmp_path / "packed")])


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_cut_short_it_is_refused(tmp_path: Path, ending: str, kind: str) -> None:
    rows = "".join(f'{{"text": "row {n * n * n % 9973}"}}\n' for n in range(5000)).encode()
    file = tmp_path / f"a{kind}{ending}"
    whole = PACKED[ending](rows)
    for data in (whole[: len(whole) // 2], whole[:-6], b"plain text that no one compressed\n" * 9):
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"a\..* is not a whole (gzip|zstd|bz2|xz) archive"):
            list(iter_documents([str(file)]))


def test_every_stream_of_an_xz_archive_is_read_or_refused(tmp_path: Path) -> None:
    first, second = (lzma.compress((json.dumps({"id": name, "text": f"Text {name}."}) + "\n").encode()) for name in ("one", "two"))
    (tmp_path / "a.jsonl.xz").write_bytes(first + bytes(8) + second + bytes(4))  # padding is part of the format
    assert [document[0] for document in documents(tmp_path)] == ["one", "two"]
    damaged = bytearray(first + second)
    damaged[len(first) + 2] ^= 1
    (tmp_path / "a.jsonl.xz").write_bytes(bytes(damaged))
    with pytest.raises(UserError, match="not a whole xz archive"):
        documents(tmp_path)
