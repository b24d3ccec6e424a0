"""INPUT on the command line → the files (here or behind URLs), recipes and hub data sets that it stands for, in a fixed order."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lsm.errors import UserError
from lsm.text.compressed import COMPRESSIONS
from lsm.text.remote import RemoteFile, files_of_url, is_url, shown

READABLE_SUFFIXES = (*(kind + ending for kind in (".txt", ".md", ".jsonl") for ending in ("", *COMPRESSIONS)), ".parquet")
"""What `lsm.text.readers` reads, by the end of the file's name."""
_READABLE = f".txt .md .jsonl (also with {' '.join(COMPRESSIONS)} at the end) and .parquet"

HUB_PREFIX = "hf:"


@dataclass(frozen=True)
class InputFile:
    """One file to read."""

    path: Path | RemoteFile
    name: str
    """Path relative to the input that it was found under, with `/`: equal on every machine."""
    found: bool = False
    """Found in a folder or by a glob rather than named: if it is empty it is skipped, not refused."""

    def look(self) -> tuple[int | None, tuple[Any, ...]]:
        """Its size now, and what changes when somebody writes into the file or puts another in its place."""
        if isinstance(self.path, RemoteFile):
            return self.path.look()
        found = self.path.stat()
        return found.st_size, (found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class HubInput:
    """`hf:DATASET[:SPLIT]`."""

    dataset: str
    split: str


@dataclass(frozen=True)
class RecipeInput:
    """`RECIPE` or `RECIPE:START-STOP`, the documents from number START up to and without STOP."""

    name: str
    start: int = 0
    stop: int | None = None


def expand_input(value: str, recipe_names: list[str]) -> list[InputFile] | HubInput | RecipeInput:
    """What one INPUT stands for; an existing path wins over a recipe of the same name.

    Raises:
        UserError: nothing of that name, a folder or glob without readable files, an unknown file ending.
    """
    if value.startswith(HUB_PREFIX):
        return _hub_input(value)
    if is_url(value):
        return _url_files(value)
    path = Path(value)
    if path.is_dir():
        return _folder_files(path, value)
    if path.exists():
        return [_named_file(path)]
    if glob.has_magic(value):
        return _glob_files(value)
    recipe = _recipe_input(value, recipe_names)
    if recipe is not None:
        return recipe
    near = get_close_matches(value, recipe_names, 1)
    if near:
        raise UserError(f"input {value} does not exist; did you mean the recipe {near[0]}?")
    recipes = f", hf:DATASET or a recipe ({', '.join(recipe_names)})" if recipe_names else " or hf:DATASET"
    raise UserError(f"input {value} does not exist; give a file, folder, glob, URL{recipes}")


def suffix_of(path: Path | RemoteFile) -> str | None:
    """Which of `READABLE_SUFFIXES` the file's name ends in, if any."""
    return _suffix(path.name)


def _suffix(name: str) -> str | None:
    name = name.lower()
    return next((suffix for suffix in READABLE_SUFFIXES if name.endswith(suffix) and name != suffix), None)


def _url_files(value: str) -> list[InputFile]:
    found, listed = files_of_url(value, lambda name: _suffix(name) is not None)
    files = [InputFile(file, name, found=listed) for file, name in found if suffix_of(file) is not None]
    if not files:
        others = " ".join(sorted({file.suffix or file.name for file, _ in found})[:8])
        seen = f"only {others}" if others else "nothing is there"
        raise UserError(f"input {shown(value)} has no readable file ({seen}); readable are {_READABLE}")
    return sorted(files, key=lambda file: file.name)


def _hub_input(value: str) -> HubInput:
    dataset, _, split = value.removeprefix(HUB_PREFIX).partition(":")
    if not dataset:
        raise UserError(f"input {value} names no data set; write hf:DATASET or hf:DATASET:SPLIT")
    return HubInput(dataset, split or "train")


def _recipe_input(value: str, recipe_names: list[str]) -> RecipeInput | None:
    name, colon, span = value.partition(":")
    if name not in recipe_names:
        return None
    if not colon:
        return RecipeInput(name)
    start, dash, stop = span.partition("-")
    if not (dash and start.isdecimal() and (stop.isdecimal() or not stop)) or (stop and int(stop) <= int(start)):
        raise UserError(f"input {value}: after the recipe comes START-STOP, for example {name}:0-90 for its first 90 documents")
    return RecipeInput(name, int(start), int(stop) if stop else None)


def _named_file(path: Path) -> InputFile:
    if not path.is_file():
        raise UserError(f"input {path} is not a regular file; save it as a file first")
    if suffix_of(path) is None:
        raise UserError(f"input {path} ends in {path.suffix or 'nothing'}; readable are {_READABLE}; convert it")
    return InputFile(path, _portable(path.name))


def _folder_files(folder: Path, value: str, root: Path | None = None) -> list[InputFile]:
    """Every readable file below `folder`, sorted by its relative name; hidden files and folders are left out."""
    root = root or folder
    files, others = [], set()
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or not path.is_file():
                continue
            if suffix_of(path) is None:
                others.add(path.suffix or name)
            else:
                files.append(InputFile(path, _portable(path.relative_to(root).as_posix()), found=True))
    if not files:
        seen = f"only {' '.join(sorted(others)[:8])}" if others else "it is empty"
        raise UserError(f"folder {value} has no readable file ({seen}); readable are {_READABLE}")
    return sorted(files, key=lambda file: file.name)


def _glob_files(pattern: str) -> list[InputFile]:
    """Every readable file that matches; names are relative to the part of the pattern before its first wildcard."""
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return files_below(Path(*parts[:fixed]), "/".join(parts[fixed:]), pattern)


def files_below(root: Path, pattern: str, value: str) -> list[InputFile]:
    """Every readable file below `root` that matches the glob, and the readable files in every folder that matches, sorted by name.

    Raises:
        UserError: none does; `value` is what the person typed.
    """
    files = []
    for match in map(Path, glob.glob(pattern, root_dir=root, recursive=True)):  # noqa: PTH207 (Path.glob matches hidden files)
        path = root / match
        if path.is_file() and suffix_of(path) is not None:
            files.append(InputFile(path, _portable(match.as_posix()), found=True))
        elif path.is_dir() and "**" not in pattern:
            files += _folder_files(path, str(path), root)
    if not files:
        raise UserError(f"input {value} matches no readable file; readable are {_READABLE}")
    return sorted(files, key=lambda file: file.name)


def _portable(name: str) -> str:
    """A file name as valid Unicode: bytes that are none (old Latin-1 names) become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _raise(error: OSError) -> None:
    raise UserError(f"cannot read folder {error.filename}: {error.strerror}") from error
