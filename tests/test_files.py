"""What the operating system refuses becomes one line that names the place; anything else stays an error of ours."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lsm.errors import UserError
from lsm.files import atomic_write, explained
from lsm.progress import say, silenced


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk full while writing out"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot write out: Read-only"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "cannot write out: Not a directory; choose another name"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk full while writing out"),
        (RuntimeError("I/O error: Permission denied (os error 13)"), "cannot write out: Permission denied"),
    ],
)
def test_refusals_are_explained(error: Exception, expected: str) -> None:
    with pytest.raises(UserError, match=expected), explained(Path("out")):
        raise error


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), explained(Path("out")):
        _ = 1 // 0
    with pytest.raises(UserError, match=r"^as it was$"), explained(Path("out")):
        raise UserError("as it was")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"), atomic_write(tmp_path / "nowhere" / "file"):
        pass


def test_silenced_reaches_every_say(capsys: pytest.CaptureFixture[str]) -> None:
    with silenced(True):
        say("one")
    say("two")
    assert capsys.readouterr().err == "two\n"
