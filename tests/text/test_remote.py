"""Inputs behind URLs read as the files that they are; what the network does to them is one line."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsm.errors import UserError
from lsm.text import readers
from lsm.text.readers import input_bytes, iter_documents

ROWS = [{"id": f"r{n}", "text": f"Row {n}, été. " * (n % 7 + 1)} for n in range(300)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet(rows: list[dict[str, str]], **how: Any) -> bytes:
    handle = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), handle, **how)
    return handle.getvalue()


FILES = {
    "a.txt": b"A text.\n", "b.jsonl.gz": gzip.compress(JSONL), "c.parquet": parquet([{"text": "in parquet"}]), "deep/d.md": b"# Deep\n",
    "deep/e.jsonl.zst": pa.compress(b'{"text": "zst"}\n', codec="zstd", asbytes=True), ".hidden/f.txt": b"hidden", "g.png": b"no text",
}  # fmt: skip


def read(*inputs: str) -> list[tuple[str, str, str]]:
    return [(document.doc_id, document.text, document.source) for document in iter_documents(inputs, note=lambda line: None)]


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in memory:// with `FILES`."""
    system = fsspec.filesystem("memory")
    for name, data in FILES.items():
        system.pipe(f"/texts/{name}", data)
    yield "memory://texts"
    system.rm("/texts", recursive=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same files here."""
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("what", ["", "/", "/a.txt", "/b.jsonl.gz", "/c.parquet", "/deep", "/*", "/*.txt", "/**/*.md", "/[ab].*"])
def test_as_the_files_here(memory: str, folder: Path, what: str) -> None:
    assert read(memory + what) == read(f"{folder}{what}")
    assert input_bytes([memory + what]) == input_bytes([f"{folder}{what}"])


def test_chained_urls(tmp_path: Path, folder: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    assert read(f"zip://deep::file://{tmp_path}/all.zip") == read(f"{folder}/deep")


def test_faults_are_one_line(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, problem in (
        (f"{memory}/none.txt", r"cannot read memory://texts/none.txt: it does not exist"),
        (f"{memory}/*.csv", r"memory://texts/\*.csv has no readable file \(nothing is there\)"),
        (f"{memory}/g.png", r"g.png has no readable file \(only .png\)"),
        ("s3://bucket/a.txt", "LSM_OFFLINE=1"),
    ):
        with pytest.raises(UserError, match=problem) as found:
            read(url)
        assert "\n" not in str(found.value)
    monkeypatch.delenv("LSM_OFFLINE")
    with pytest.raises(UserError, match="fsspec knows no such protocol"):
        read("nonsense://a/b.txt")
    for module, url, line in (
        ("s3fs", "s3://bucket/a.txt", r"pip install 'lsm\[s3\]'"), ("gcsfs", "gs://bucket/a.txt", r"pip install 'lsm\[gs\]'"),
        ("paramiko", "sftp://host/a.txt", "pip install paramiko"),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=line):
            read(url)


def test_a_file_that_changes_while_it_is_read(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_LOOK_AGAIN_SECONDS", 0.0)
    documents = iter_documents([f"{memory}/b.jsonl.gz"])
    next(documents)
    fsspec.filesystem("memory").pipe("/texts/b.jsonl.gz", gzip.compress(JSONL + b'{"text": "more"}\n'))
    with pytest.raises(UserError, match=r"memory://texts/b\.jsonl\.gz changed while it was read"):
        list(documents)


def test_a_corpus_of_urls(memory: str, folder: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """The bytes of the corpus are those of local files; plan.json holds no address; changed content is refused."""
    corpus = tmp_path / "corpus"
    for out, source in ((corpus, f"{memory}/b.jsonl.gz"), (tmp_path / "here", folder / "b.jsonl.gz")):
        assert run_cli("encode-corpus", source, "--out", out, "--encoder", "stub", "--shard-rows", 100, "--quiet").code == 0
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())
    assert all((corpus / name).read_bytes() == (tmp_path / "here" / name).read_bytes() for name in files)
    assert json.loads((corpus / "plan.json").read_text())["stages"][0]["inputs"] == ["b.jsonl.gz"]
    fsspec.filesystem("memory").pipe("/texts/b.jsonl.gz", gzip.compress(JSONL.replace(b"Row 7,", b"Row 8,")))
    outcome = run_cli("encode-corpus", f"{memory}/b.jsonl.gz", "--out", corpus, "--encoder", "stub", "--shard-rows", 100, "--quiet")
    assert outcome.code == 2 and "the input differs" in outcome.stderr


class Handler(SimpleHTTPRequestHandler):
    """Files with ranges; below /whole/ without; /broken/ ends the connection in the middle; /denied/ answers 403."""

    sent = 0

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        _, kind, *rest = self.path.partition("?")[0].split("/")
        file = Path(self.directory, *rest)
        if kind == "denied":
            self.send_error(403)
            return
        if not rest or not file.exists() or file.is_dir():
            if file.is_dir() and rest:
                self.path = "/" + "/".join(rest)
                super().do_GET()
            else:
                self.send_error(404)
            return
        data = file.read_bytes()
        asked = self.headers.get("Range") if kind != "whole" else None
        first, stop = 0, len(data)
        if asked:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            stop = min(last + 1, len(data))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - first))
        self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()
        if body:
            data = data[first:stop] if kind != "broken" else data[first : first + 10]
            Handler.sent += len(data)
            try:
                self.wfile.write(data)
            except OSError:  # the reader had enough
                self.close_connection = True


@pytest.fixture
def web(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server of `folder`."""
    pytest.importorskip("aiohttp")
    monkeypatch.delenv("LSM_OFFLINE")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("what", ["a.txt", "b.jsonl.gz", "c.parquet", "deep/", "*.txt", "deep/*"])
def test_over_http(web: str, folder: Path, what: str) -> None:
    assert read(f"{web}/files/{what}") == read(f"{folder}/{what}")
    assert read(f"{web}/files/a.txt?token=secret") == read(f"{folder}/a.txt")


def test_faults_of_the_web_are_one_line(web: str, folder: Path) -> None:
    for url, problem in (
        (f"{web}/files/none.txt?token=secret", "it does not exist"), (f"{web}/denied/a.txt?token=secret", "the server answers 403"),
        (f"{web}/broken/b.jsonl.gz?token=secret", "check name, network and credentials"),
        ("http://127.0.0.1:9/a.txt?token=secret", "check name, network and credentials"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=problem) as found:
            read(url)
        assert "\n" not in str(found.value) and "secret" not in str(found.value)


def test_rows_are_read_without_the_rest(web: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first documents of a large file cost a few blocks; a server without ranges is read from the beginning to the end."""
    rows = [{"id": str(n), "text": f"{n} " * 200, "other": "x" * 5000} for n in range(900)]
    monkeypatch.setattr("lsm.text.remote._BLOCK_BYTES", 2**18)
    (folder / "big.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "big.parquet").write_bytes(parquet(rows, row_group_size=50, compression="none", use_dictionary=False))
    for name, most in (("big.jsonl", 2e6), ("big.parquet", 1e6)):
        Handler.sent = 0
        documents = iter_documents([f"{web}/files/{name}"])
        assert [next(documents).doc_id for _ in range(3)] == ["0", "1", "2"]
        documents.close()
        assert 0 < Handler.sent < most < (folder / name).stat().st_size
    assert read(f"{web}/files/big.parquet") == [(row["id"], row["text"], "big.parquet") for row in rows]
    assert read(f"{web}/whole/big.jsonl") == [(row["id"], row["text"], "big.jsonl") for row in rows]
    with pytest.raises(UserError, match="the server sends whole files only"):
        read(f"{web}/whole/big.parquet")
