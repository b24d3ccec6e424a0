"""A corpus to and from a dataset repository of the Hugging Face hub: what is pulled opens as a corpus once every hash has been compared."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsm.assets import offline
from lsm.assets.hub_errors import hub_explained
from lsm.assets.sources import HUB_TIMEOUT_SECONDS
from lsm.corpus import format as layout
from lsm.corpus.card import UNKNOWN, data_card
from lsm.corpus.index import write_index
from lsm.corpus.reader import Corpus, read_manifest
from lsm.corpus.writer import read_done
from lsm.errors import UserError
from lsm.files import DONE_MARKER, TEMPORARY_SUFFIX, explained, read_json, sha256_file, write_json
from lsm.lock import LOCK, only_writer
from lsm.progress import say

CARD = "README.md"
_BESIDE = (layout.PLAN, layout.DERIVED)
_UNVERIFIED = ".unverified"
"""Where the manifest waits until all that it lists has been compared."""
_FILE_NAME = re.compile(r"[a-z]+(-[a-z]+)*\.(npy|parquet)")

Advance = Callable[[int], None]


def push(
    corpus: Corpus,
    repository: str,
    *,
    licence: str = UNKNOWN,
    private: bool = False,
    revision: str | None = None,
    advance: Advance = lambda n: None,
) -> dict[str, str]:
    """Send a corpus to a dataset repository, which is made when it is not there; manifest and data card go last.

    Files that the repository has already are not sent again, so that a second call goes on where the first stopped; what an earlier corpus
    left there is deleted. Between the first file and the manifest the repository holds no whole corpus, and `pull` says so.

    Args:
        licence: of the texts, for the card.
        private: makes the repository private where it is made now.
        revision: the branch, made when it is not there; default: `main`.
        advance: called with the number of sentences of each shard whose hashes agree.

    Returns:
        `repository`, `commit` and `url`.

    Raises:
        UserError: no network or no token, the hub refuses, or a file of the corpus differs from its hash.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    _require_network(repository)
    if get_token() is None:
        raise UserError(f"no token of the hub to push {repository} with; make one in its settings, then: hf auth login, or set HF_TOKEN")
    try:
        names = set(_names(corpus.path, corpus.manifest, advance))
    except UserError as error:
        raise UserError(f"{error}; {layout.mended_by(corpus.path)}") from error
    _require_ended(corpus)
    api = HfApi()
    kind: dict[str, Any] = {"repo_id": repository, "repo_type": "dataset"}
    with hub_explained(repository, absent="does the token allow to write there?"), _without_bars():
        api.create_repo(**kind, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(**kind, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(**kind, revision=revision))
        where = {"revision": revision, "commit_message": f"Corpus {corpus.fingerprint}"}
        api.upload_folder(
            **kind,
            **where,
            folder_path=corpus.path,
            allow_patterns=sorted(names),
        )
        stale = [name for name in there - names if name.startswith(f"{layout.SHARDS}/") or name in _BESIDE]
        operations: list[Any] = [CommitOperationDelete(name) for name in sorted(stale)]
        operations.append(CommitOperationAdd(CARD, data_card(corpus, repository, licence).encode()))
        operations.append(CommitOperationAdd(layout.MANIFEST, corpus.path / layout.MANIFEST))
        commit = api.create_commit(**kind, **where, operations=operations)
    return {"repository": repository, "commit": commit.oid, "url": f"{api.endpoint}/datasets/{repository}"}


def pull(repository: str, out: Path, *, revision: str | None = None, advance: Advance = lambda n: None) -> dict[str, Any]:
    """Fetch a corpus from a dataset repository; a second call goes on where the first stopped, or mends what is damaged since.

    The commit is chosen by the first call and kept. The manifest is put in its place last, when every file has its hash, so that
    nothing which is not whole opens as a corpus.

    Args:
        revision: branch, tag or commit; default: what was chosen before, else `main`.
        advance: called with the number of sentences of each shard that is there and right.

    Returns:
        `repository`, `commit` and the `manifest`.

    Raises:
        UserError: no network, no such repository or revision, no corpus in it, files that differ from the manifest (they are
            deleted), or a folder that holds something else.
    """
    from huggingface_hub import HfApi

    _require_network(repository)
    api = HfApi()
    kind: dict[str, Any] = {"repo_id": repository, "repo_type": "dataset"}
    with hub_explained(repository, absent="a private one needs a token (hf auth login, or HF_TOKEN)"):
        recorded = _recorded(out, repository)
        commit = recorded
        if recorded is None or revision is not None:
            commit = api.dataset_info(repository, revision=revision, timeout=HUB_TIMEOUT_SECONDS).sha
        if recorded not in (None, commit):
            raise UserError(f"{out} is a pull of commit {recorded}, --revision {revision} is {commit}; choose another folder")
        assert commit is not None
        with only_writer(out), _without_bars(), explained(out):
            write_json(out / layout.PULL, {"repository": repository, "commit": commit})
            try:
                manifest = _manifest(api, kind, repository, commit, out)
            except UserError:
                if not (out / layout.MANIFEST).exists() and not (out / layout.SHARDS).exists():  # nothing has come of this pull
                    (out / layout.PULL).unlink()
                    shutil.rmtree(out / _UNVERIFIED, ignore_errors=True)
                raise
            _delete_wrong(out, manifest)
            api.snapshot_download(
                **kind,
                revision=commit,
                local_dir=out,
                allow_patterns=[f"{layout.SHARDS}/*", layout.DOCUMENTS, CARD, *_BESIDE],
            )
            try:
                list(_names(out, manifest, advance))
            except UserError as error:
                _delete_wrong(out, manifest)
                raise UserError(f"{error}; it was deleted: pull again, and if that does not help, push {repository} again") from error
            write_index(out, manifest)
            shutil.rmtree(out / ".cache", ignore_errors=True)
            if not (out / layout.MANIFEST).exists():
                (out / _UNVERIFIED / layout.MANIFEST).rename(out / layout.MANIFEST)
            shutil.rmtree(out / _UNVERIFIED, ignore_errors=True)
    return {"repository": repository, "commit": commit, "manifest": manifest}


def _require_ended(corpus: Corpus) -> None:
    """Raise `UserError` where a later call of encode-corpus has begun and not ended: its plan would travel without its shards."""
    plan = corpus.path / layout.PLAN
    if plan.exists() and any(stage["first_shard"] >= corpus.n_shards for stage in read_json(plan)["stages"]):
        raise UserError(f"{corpus.path}: an --append is unfinished; run that encode-corpus command again first, then push")


def _recorded(out: Path, repository: str) -> str | None:
    """The commit that an earlier call chose for this folder, None for an empty or missing folder."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder; choose another name")
    if (out / layout.PULL).exists():
        record = read_json(out / layout.PULL)
        record = record if isinstance(record, dict) else {}
        if record.get("repository") != repository or not isinstance(record.get("commit"), str):
            raise UserError(f"{out} was pulled from {record.get('repository')}; choose another folder")
        return record["commit"]
    items = list(out.iterdir()) if out.exists() else []
    strangers = [item.name for item in items if item.name != LOCK and not item.name.endswith(TEMPORARY_SUFFIX)]
    if strangers:
        raise UserError(f"{out} holds something else already ({strangers[0]}); choose another folder")
    return None


def _manifest(api: Any, kind: dict[str, Any], repository: str, commit: str, out: Path) -> dict[str, Any]:
    """The repository's manifest, which stays out of its place until the end."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        fetched = api.hf_hub_download(**kind, filename=layout.MANIFEST, revision=commit, local_dir=out / _UNVERIFIED)
    except EntryNotFoundError as error:
        raise UserError(
            f"{repository} at {commit[:12]} holds no corpus (no {layout.MANIFEST}): another kind of data set, or a push that has not ended"
        ) from error
    manifest = read_manifest(Path(fetched))
    for index, shard in enumerate(manifest["shards"]):
        if shard["name"] != layout.shard_name(index) or not all(_FILE_NAME.fullmatch(name) for name in shard["files"]):
            raise UserError(f"{repository}: its {layout.MANIFEST} lists files that no corpus has; it is not to be trusted")
    if (out / layout.MANIFEST).exists() and _json_or_none(out / layout.MANIFEST) != manifest:
        _mend_manifest(out, manifest, repository)
    return manifest


def _mend_manifest(out: Path, manifest: dict[str, Any], repository: str) -> None:
    """Take a manifest that differs from the repository's out of the way, where nothing else differs; else nothing is deleted."""
    try:
        list(_names(out, manifest, lambda _: None))
    except UserError as error:
        raise UserError(
            f"{out} was changed since it was pulled (its {layout.MANIFEST} differs from {repository}'s, and other files do); if they are "
            f"damaged, delete {out / layout.MANIFEST} and pull again; else choose another folder"
        ) from error
    say(f"{out / layout.MANIFEST} differs from {repository}'s, and nothing else does: it is written again")
    (out / layout.MANIFEST).unlink()


def _hashes(manifest: dict[str, Any]) -> Iterator[tuple[int | None, str, str]]:
    """Shard, path in the corpus and sha256 of every file that a manifest lists."""
    yield None, layout.DOCUMENTS, manifest["documents_sha256"]
    for index, shard in enumerate(manifest["shards"]):
        for name, sha256 in shard["files"].items():
            yield index, f"{layout.SHARDS}/{shard['name']}/{name}", sha256


def _names(path: Path, manifest: dict[str, Any], advance: Advance) -> Iterator[str]:
    """Every file of a corpus, after its hash has been compared.

    Raises:
        UserError: one is missing or differs.
    """
    compared: int | None = None
    for index, name, sha256 in _hashes(manifest):
        if not (path / name).is_file() or sha256_file(path / name) != sha256:
            raise UserError(f"{path / name} is missing or differs from its hash in {layout.MANIFEST}")
        if index is not None and index != compared:
            compared = index
            entry = {key: value for key, value in manifest["shards"][index].items() if key != "name"}
            if read_done(path, index) != entry:
                raise UserError(f"{layout.shard_folder(path, index) / DONE_MARKER} is missing or differs from {layout.MANIFEST}")
            yield f"{layout.SHARDS}/{layout.shard_name(index)}/{DONE_MARKER}"
            advance(entry["n_sentences"])
        yield name
    yield from (name for name in _BESIDE if (path / name).exists())


def _delete_wrong(out: Path, manifest: dict[str, Any]) -> None:
    """Delete every file that differs from its hash, so that it is fetched again."""
    for index, name, sha256 in _hashes(manifest):
        if (out / name).is_file() and sha256_file(out / name) != sha256:
            (out / name).unlink()
        if index is not None and (marker := layout.shard_folder(out, index) / DONE_MARKER).exists():
            entry = {key: value for key, value in manifest["shards"][index].items() if key != "name"}
            if _json_or_none(marker) != entry:
                marker.unlink()


def _json_or_none(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError:
        return None


def _require_network(repository: str) -> None:
    if offline():
        raise UserError(f"{repository} lies on the hub, but LSM_OFFLINE=1 is set; unset it")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Within it the hub's library draws no bars of its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
