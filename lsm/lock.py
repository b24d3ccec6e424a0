"""One writer per folder: an advisory lock that dies with its process, so `kill -9` never leaves a folder locked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsm.errors import UserError
from lsm.files import explained, make_folder

try:
    import fcntl
except ImportError:  # Windows has no flock: there a person must not start two writers
    fcntl = None

LOCK = ".lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` (made when missing) for this process; the lock file is gone afterwards.

    Raises:
        UserError: another process is writing there, or the folder cannot be made.
    """
    with explained(folder):
        try:
            make_folder(folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"--out {folder} is a file, not a folder; choose another name") from error
        except FileNotFoundError as error:
            raise UserError(f"--out {folder} cannot be made there; choose another folder") from error
        descriptor = _acquire(folder) if fcntl else None
    try:
        yield
    finally:
        if descriptor is not None:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(folder: Path) -> int:
    assert fcntl is not None
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(f"{folder} is being written by another process; wait for it or choose another folder") from error
        # The former holder may have removed the file between our open and our lock: then we hold nothing that others see.
        try:
            if (folder / LOCK).stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
