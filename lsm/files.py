"""Files that survive `kill -9`: temporary name, fsync, rename, and a marker written last."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lsm.errors import UserError

TEMPORARY_SUFFIX = ".partial"
CONFIG = "config.json"
"""Beside a trained network's weights: its kind and shape."""
DONE_MARKER = "done.json"


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path`; on success fsync it and rename it to `path`.

    Raises `UserError` when the disk is full or the folder cannot be written; nothing is left behind then.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}; make it first or choose another name")
    with explained(path):
        try:
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, *, writer: str = "") -> Iterator[Path]:
    """Yield a temporary neighbour folder; on success fsync what is in it and rename it to `path`, replacing it.

    `writer` goes into the temporary name, where several processes write beside each other.
    """
    temporary = path.with_name(path.name + (f".{writer}" if writer else "") + TEMPORARY_SUFFIX)
    with explained(path):
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
                else:
                    _fsync_folder(file)
            _fsync_folder(temporary)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _fsync_folder(path.parent)


def make_folder(path: Path) -> None:
    """`path.mkdir(parents=True, exist_ok=True)` that survives a power cut: what is fsynced inside is lost when its folder's name is."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _fsync_folder(path.parent)


@contextmanager
def unseen_folder() -> Iterator[Path]:
    """A temporary folder in the system's place for them, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, read-only folder) into a `UserError` naming `path`.

    Also where a library reports them in words only (safetensors, faiss).
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = refusal(error, path)
        if line is None:
            raise
        raise UserError(line) from error


def refusal(error: Exception, path: Path | str, *, verb: str = "write") -> str | None:
    """The line for a full disk or for a place that cannot be used; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    words = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or (code is None and "No space left on device" in words):
        return f"disk full while writing {path}; free some space and run the same command again"
    if code == errno.EFBIG:
        return f"cannot {verb} {path}: it would be larger than the file system or `ulimit -f` allows; raise that or choose another folder"
    if code == errno.EIO:
        return f"cannot {verb} {path}: {os.strerror(code)}, the disk may be failing; choose a folder on another one"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"cannot {verb} {path}: {os.strerror(code)}; choose another folder or mend its permissions"
    if code is None and (found := re.search(r"Permission denied|Read-only file system", words)):
        return f"cannot {verb} {path}: {found[0]}; choose another folder or mend its permissions"
    if code in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return f"cannot {verb} {path}: {os.strerror(code)}; choose another name"
    return None


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted `atomic_write` or `atomic_folder` left directly inside `folder`."""
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with sorted keys (equal values give equal bytes)."""
    with atomic_write(path, "w") as handle:
        handle.write(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; `UserError` names it when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or delete it and run again") from error


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of the sha256 of `value` as canonical JSON: equal settings, equal fingerprint."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
