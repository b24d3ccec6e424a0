"""URLs (s3://, gs://, https://, memory:// …) → files that are read a stretch at a time, through fsspec."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from lsm.assets import offline
from lsm.errors import UserError, missing_extra

_BLOCK_BYTES = 5 * 2**20
"""Asked for at once, whatever the file system's own habit is (s3fs takes 50 MiB)."""
_EXTRAS = {"aiohttp": "http", "s3fs": "s3", "gcsfs": "gs", "adlfs": "azure"}
_NEED_NO_NETWORK = ("file", "local", "memory", "data")
_TELL_OF_CHANGES = (
    "size", "ETag", "etag", "mtime", "LastModified", "last_modified", "Last-Modified", "modified", "updated", "created", "ino",
    "generation", "Content-MD5", "content_md5", "md5Hash", "crc32c", "Digest", "checksum", "content_hash", "sha",
)  # fmt: skip
"""Entries of `info` that stay the same as long as the content does; others (signed addresses) may differ from one call to the next."""


def is_url(value: str) -> bool:
    """Whether an INPUT is one: `PROTOCOL://…`, also chained (`zip://*.txt::s3://bucket/texts.zip`)."""
    protocol, found, _ = value.partition("://")
    return bool(found) and protocol.replace("+", "").replace("-", "").replace(".", "").isalnum()


def url_name(url: str) -> str:
    """Its last part, without what may hold a secret: the name of the file or folder, or a pattern."""
    return unquote(PurePosixPath(_without_query(url.split("::")[0])).name)


@dataclass(frozen=True)
class RemoteFile:
    """One file behind a URL. As with a `Path`, `str` names it for a person, and `open`, `name` and `suffix` are there."""

    url: str
    path: str
    """As its file system calls it."""
    system: Any
    """The fsspec file system."""
    listed_bytes: int | None = None
    """Its size, where the listing told."""

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        return url_name(self.url)

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def look(self) -> tuple[int | None, tuple[Any, ...]]:
        """Its size now, if the server tells, and what changes when somebody writes into it or puts another in its place."""
        with reachable(self.url):
            self.system.invalidate_cache(self.path)
            info = self.system.info(self.path)
        return info.get("size"), tuple(str(info.get(key)) for key in _TELL_OF_CHANGES)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """To be read from the beginning to the end, a few blocks in memory."""
        assert mode == "rb"
        return io.BufferedReader(_Reading(self, seeks=False), 2**20)

    def open_for_seeking(self) -> io.RawIOBase:
        """To be read here and there: what is asked for is fetched, nothing besides."""
        return _Reading(self, seeks=True, cache_type="none")


class _Reading(io.RawIOBase):
    """A file of fsspec whose faults are one line each, also where the server sends whole files only."""

    def __init__(self, file: RemoteFile, *, seeks: bool, **how: Any) -> None:
        self._file, self._seeks = file, seeks
        with reachable(file.url):
            self._raw: Any = file.system.open(file.path, "rb", block_size=_BLOCK_BYTES, **how)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        with reachable(self._file.url):
            return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        with reachable(self._file.url):
            try:
                data = self._raw.read(len(buffer))
            except ValueError as error:
                if self._seeks or "range requests" not in str(error):
                    raise
                self._stream()
                data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _stream(self) -> None:
        """Go on with one long request for all of it, as far as was read passed over."""
        from aiohttp import ClientTimeout

        position, size = self._raw.tell(), self._raw.size
        self._raw.close()
        patient = ClientTimeout(total=None, sock_read=300)
        self._raw = self._file.system.open(self._file.path, "rb", block_size=0, size=size, timeout=patient)
        while position > 0:
            passed = len(self._raw.read(min(position, _BLOCK_BYTES)))
            if not passed:
                raise EOFError("it ends before where it was read to; it has changed")
            position -= passed

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def files_of_url(url: str, is_readable: Callable[[str], bool]) -> tuple[list[tuple[RemoteFile, str]], bool]:
    """The file that a URL names, or all files below the folder, or those that match the glob (and all below folders that match).

    Returns:
        The files, each with its name relative to the URL (to the part of a pattern before its first wildcard), hidden ones left out;
        and whether they were found rather than named.

    Raises:
        UserError: nothing there, no access, or a package for the protocol is missing.
    """
    system, path = _opened_system(url)
    protocols = (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
    web = bool({"http", "https"} & set(protocols))
    magic = "*[" if web else "*[?"
    with reachable(url):
        if any(letter in path for letter in magic):
            return _matching(system, path, magic), True
        # A web server lists a folder as a page of links, and any address may be a page: what is named like a file is one.
        is_file = is_readable(url_name(url)) and not url.endswith("/") if web else system.info(path)["type"] == "file"
        if is_file:
            info = system.info(path)
            return [(RemoteFile(url, path, system, info.get("size")), url_name(url))], False
        return list(_below(system, path, path)), True


def _matching(system: Any, pattern: str, magic: str) -> list[tuple[RemoteFile, str]]:
    parts = pattern.split("/")
    fixed = next(number for number, part in enumerate(parts) if any(letter in part for letter in magic))
    root = "/".join(parts[:fixed])
    files: dict[str, tuple[RemoteFile, str]] = {}
    for path, info in system.glob(pattern, detail=True).items():
        if info["type"] != "directory":
            files[path] = _found(system, path, root, info)
        elif "**" not in pattern:
            files |= {file.path: (file, name) for file, name in _below(system, path, root)}
    return [(file, name) for file, name in files.values() if not _hidden(name)]


def _below(system: Any, folder: str, root: str) -> Iterator[tuple[RemoteFile, str]]:
    for path, info in system.find(folder, detail=True).items():
        file, name = _found(system, path, root, info)
        if not _hidden(name):
            yield file, name


def _found(system: Any, path: str, root: str, info: dict[str, Any]) -> tuple[RemoteFile, str]:
    name = path.removeprefix(root).strip("/")
    if "://" in path:  # of the web: as in an address
        name = unquote(name.partition("?")[0])
    return RemoteFile(system.unstrip_protocol(path), path, system, info.get("size")), name


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _opened_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    protocol = url.split("::")[-1].partition("://")[0]
    if offline() and protocol not in _NEED_NO_NETWORK:
        raise UserError(f"input {shown(url)} needs the network but LSM_OFFLINE=1 is set; unset it, or read a local file")
    try:
        with reachable(url):
            return url_to_fs(url)
    except ImportError as error:
        package = getattr(error.__cause__ or error, "name", None) or protocol
        if package in _EXTRAS:
            raise missing_extra(package, _EXTRAS[package]) from error
        raise UserError(f"input {shown(url)} needs {package}, which is not installed; run: pip install {package}") from error


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turn whatever a file system raises (each has errors of its own) into one `UserError`; a missing package passes through."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        raise UserError(f"cannot read {shown(url)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    cause = error
    while isinstance(cause, FileNotFoundError) and isinstance(cause.__cause__, Exception):  # fsspec says so of all that fails over HTTP
        cause = cause.__cause__
    status = getattr(cause, "status", None)
    if status == 404 or (isinstance(cause, FileNotFoundError) and cause is error):
        return "it does not exist; check the name"
    if status is not None:
        return f"the server answers {status} {getattr(cause, 'message', '')}".rstrip() + "; check name and credentials"
    if isinstance(cause, ValueError) and "range requests" in str(cause):
        return "the server sends whole files only, and this one is read here and there; fetch it first"
    if isinstance(cause, ValueError) and "Protocol not known" in str(cause):
        return "fsspec knows no such protocol; check the name"
    text = " ".join(str(cause).split())[:200] or type(cause).__name__
    return f"{text}; check name, network and credentials"


def shown(url: str) -> str:
    """Without user, password and query, which may be secret."""
    return "::".join(map(_without_query, url.split("::")))


def _without_query(url: str) -> str:
    protocol, found, rest = url.partition("://")
    if protocol in ("http", "https"):
        rest = rest.partition("?")[0].partition("#")[0]
    host, slash, path = rest.partition("/")
    if protocol not in ("github", "abfs", "abfss"):  # theirs is no user and password
        host = host.rpartition("@")[2]
    return f"{protocol}{found}{host}{slash}{path}"
