"""Who may write into a folder: one process, or the tasks of one job. Advisory locks that die with their process: `kill -9` never leaves
a folder locked."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lsm.errors import UserError
from lsm.files import explained, make_folder

try:
    import fcntl
except ImportError:  # Windows has no flock: there a person must not start two writers
    fcntl = None

LOCK = ".lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` (made when missing) for this process; the lock file is gone afterwards.

    Raises:
        UserError: another process is writing there, or the folder cannot be made.
    """
    _make(folder)
    with explained(folder):
        descriptor = _acquire(folder) if fcntl else None
    try:
        yield
    finally:
        if descriptor is not None:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(descriptor)


@contextmanager
def writer_of_job(folder: Path, job: str, begin: Callable[[], None], *, patience_seconds: float) -> Iterator[None]:
    """Hold `folder` together with the other processes of `job`: nobody else can write there as long as one of them lives.

    The lock file holds the name of the job; its processes share the lock. It is gone when the last of them leaves. While the first is in
    `begin` the others wait, however long that takes.

    Args:
        job: a name that no other job has.
        begin: called by the first process of the job, alone with the folder, before any other is let in.
        patience_seconds: how long to wait for a dying process of another job.

    Raises:
        UserError: another process or job is writing there, or the folder cannot be made.
    """
    if fcntl is None:
        raise UserError(f"{folder}: several tasks need file locks, which this system does not have; use --executor local")
    _make(folder)
    with explained(folder):
        descriptor = _join(folder, job, begin, time.monotonic() + patience_seconds)
    try:
        yield
    finally:
        if _locked(descriptor, fcntl.LOCK_EX) and _is_current(folder, descriptor):
            (folder / LOCK).unlink(missing_ok=True)
        os.close(descriptor)


def _make(folder: Path) -> None:
    with explained(folder):
        try:
            make_folder(folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"--out {folder} is a file, not a folder; choose another name") from error
        except FileNotFoundError as error:
            raise UserError(f"--out {folder} cannot be made there; choose another folder") from error


def _acquire(folder: Path) -> int:
    assert fcntl is not None
    while True:
        descriptor = _opened(folder)
        if not _locked(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            raise _taken(folder)
        if _is_current(folder, descriptor):
            _name(descriptor, "")
            return descriptor
        os.close(descriptor)


def _join(folder: Path, job: str, begin: Callable[[], None], deadline: float) -> int:
    assert fcntl is not None
    while True:
        descriptor = _opened(folder)
        try:
            name = _name_in(descriptor)
            begun = name == job
            if _locked(descriptor, fcntl.LOCK_SH if begun else fcntl.LOCK_EX) and _is_current(folder, descriptor):
                if _name_in(descriptor) == job:
                    if begun:
                        return descriptor
                else:
                    _name(descriptor, _begins(job))
                    try:
                        begin()
                    except BaseException:
                        (folder / LOCK).unlink(missing_ok=True)
                        raise
                    _name(descriptor, job)
                os.close(descriptor)  # and in again by the shared door: whoever slipped in between is seen there
                continue
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline and name != _begins(job):
            raise _taken(folder)
        time.sleep(random.uniform(0.02, 0.1))


def _opened(folder: Path) -> int:
    return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _locked(descriptor: int, kind: int) -> bool:
    """Take the lock without waiting, or change its kind; where another process forbids it, a lock held before is lost."""
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise UserError(
                f"this file system has no file locks ({os.strerror(error.errno)}), which keep two writers apart; "
                "mount it with them, or choose another folder"
            ) from error
        raise
    return True


def _is_current(folder: Path, descriptor: int) -> bool:
    """False where a former holder removed the file between our open and our lock: then we hold nothing that others see."""
    try:
        return (folder / LOCK).stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _begins(job: str) -> str:
    """What the lock file holds while the first process of a job is in `begin`."""
    return f"{job} begins"


def _name(descriptor: int, name: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, name.encode(), 0)
    os.fsync(descriptor)


def _name_in(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode("utf-8", "replace")


def _taken(folder: Path) -> UserError:
    return UserError(f"{folder} is being written by another process; wait for it or choose another folder")
