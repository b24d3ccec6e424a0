"""A Hugging Face hub on this machine: the few endpoints through which `huggingface_hub` sends and fetches a dataset repository."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_made_up"


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory. `.npy` goes through LFS, everything else into the commit itself, as on the hub."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.private: set[str] = set()
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuse_after: int | None = None
        """After so many downloads the hub is out of order."""
        self.n_downloads = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes] | None:
        """Path → content at a branch or commit; None where there is no such revision."""
        there = self.repositories[repository]
        return there["commits"].get(there["branches"].get(revision, revision))

    def commit(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        there = self.repositories.setdefault(repository, {"branches": {}, "commits": {}})
        listing = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in files.items())
        oid = hashlib.sha1(json.dumps([len(there["commits"]), listing]).encode()).hexdigest()
        there["commits"][oid] = files
        there["branches"][branch] = oid
        return oid


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        writes = self.command == "POST" and path != "/api/validate-yaml"
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == path[5:]
            self.server.lfs[path[5:]] = body
            return self._send(200, {})
        found = re.fullmatch(r"(?:/api)?/datasets/([^/]+/[^/]+?)(?:\.git/info/lfs/objects/(batch)|/([a-z]+)/(.+))?", path)
        if found is None or found[1] not in self.server.repositories:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        repository, action, rest = found[1], found[2] or found[3] or "revision", found[4] or "main"
        return getattr(self, f"_{action}")(repository, rest, body)

    def _create(self, wanted: dict[str, Any]) -> None:
        repository = f"{wanted['organization']}/{wanted['name']}"
        assert wanted["type"] == "dataset"
        taken = repository in self.server.repositories
        if not taken:
            self.server.commit(repository, {".gitattributes": b"*.npy filter=lfs\n"})
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.server.private.add(repository)
        self._send(409 if taken else 200, {"url": f"{self.server.url}/datasets/{repository}", "id": repository})

    def _branch(self, repository: str, branch: str, _: bytes) -> None:
        branches = self.server.repositories[repository]["branches"]
        taken = branch in branches
        branches.setdefault(branch, branches["main"])
        self._send(409 if taken else 200, {})

    def _preupload(self, repository: str, _: str, body: bytes) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = [{"path": path, "uploadMode": "lfs" if path.endswith(".npy") else "regular", "shouldIgnore": False} for path in paths]
        self._send(200, {"files": modes})

    def _batch(self, repository: str, _: str, body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            actions = {"actions": {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}}
            objects.append(wanted | ({} if wanted["oid"] in self.server.lfs else actions))
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: str, branch: str, body: bytes) -> None:
        files = dict(self.server.files(repository, branch) or {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.server.commit(repository, files, branch)
        self._send(200, {"commitUrl": f"{self.server.url}/datasets/{repository}/commit/{oid}", "commitOid": oid, "success": True})

    def _revision(self, repository: str, revision: str, _: bytes) -> None:
        there = self.server.repositories[repository]
        if self.server.files(repository, revision) is None:
            return self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        sha = there["branches"].get(revision, revision)
        return self._send(200, {"id": repository, "sha": sha, "private": repository in self.server.private, "tags": [], "siblings": []})

    def _tree(self, repository: str, revision: str, _: bytes) -> None:
        entries = []
        for name, content in (self.server.files(repository, revision) or {}).items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if name.endswith(".npy"):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._send(200, entries)

    def _resolve(self, repository: str, rest: str, _: bytes) -> None:
        revision, _, name = rest.partition("/")
        content = (self.server.files(repository, revision) or {}).get(name)
        if content is None:
            return self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.server.n_downloads += 1
            if self.server.refuse_after is not None and self.server.n_downloads > self.server.refuse_after:
                return self._send(403, {"error": "Out of order"})
        digest = (hashlib.sha256 if name.endswith(".npy") else hashlib.sha1)(content).hexdigest()
        headers = {"X-Repo-Commit": revision, "ETag": f'"{digest}"', "Content-Type": "application/octet-stream"}
        return self._send(200, content, headers)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that `huggingface_hub` talks to, with a token for it."""
    from huggingface_hub import constants

    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.delenv("LSM_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is no plain HTTP; the hub takes LFS too
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
