"""What all tests share: no network, and one way to call the command line."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ["LSM_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from lsm.cli import main


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's tour first: it is the longest test, and begun last it would leave the other workers without work."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


class Outcome(NamedTuple):
    """What a call of the command line left: exit code and both streams."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run_cli() -> Callable[..., Outcome]:
    """`run_cli("verb", "--option", value)` calls `lsm.cli.main` in this process."""

    def run(*arguments: object) -> Outcome:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main([str(argument) for argument in arguments])
        return Outcome(code, stdout.getvalue(), stderr.getvalue())

    return run


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An asset cache with nothing in it."""
    monkeypatch.setenv("LSM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _torch_threads_restored() -> Iterator[None]:
    """Tests that change torch's thread count give it back: pytest-xdist runs many in one process."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before is not None:
        sys.modules["torch"].set_num_threads(before)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system with 1 MiB; skipped where the test may not mount one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if shutil.which("mount") is None or os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=False)
