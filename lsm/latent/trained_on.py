"""Which documents a latent transformer was trained on, kept beside it, so that no scoreboard ever judges it on one of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lsm.errors import UserError
from lsm.files import atomic_write

TRAINED_ON = "training-documents.txt"
_DIGITS = 16


def text_key(text_sha256: str) -> str:
    """What stands for a document: the beginning of its text's sha256, whatever its id and corpus. 64 bits: chance never meets."""
    return text_sha256[:_DIGITS]


def write_trained_on(folder: Path, text_sha256: Iterable[str]) -> None:
    """Write the keys of the training documents, sorted, one a line."""
    with atomic_write(folder / TRAINED_ON, "w") as handle:
        handle.writelines(f"{key}\n" for key in sorted({text_key(sha256) for sha256 in text_sha256}))


def read_trained_on(folder: Path) -> set[str] | None:
    """The keys beside a model (`folder` is a run or its `final/`); None when it does not say what it was trained on.

    Raises:
        UserError: a file of something else.
    """
    for path in (folder / TRAINED_ON, folder / "final" / TRAINED_ON):
        if path.exists():
            keys = set(path.read_text(encoding="utf-8", errors="replace").split())
            if any(len(key) != _DIGITS for key in keys):
                raise UserError(f"{path} is damaged: it holds more than {_DIGITS} hex digits a line; copy or train the run again")
            return keys
    return None
