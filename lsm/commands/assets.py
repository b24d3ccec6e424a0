"""`lsm assets list|pull|verify`: the models and corpora that have a name here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import tyro

from lsm.config import CommonOptions
from lsm.errors import UserError


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of `lsm assets`."""

    action: tyro.conf.Positional[Literal["list", "pull", "verify"]]
    """list: every name and whether it is cached; pull: fetch into the cache; verify: hash the cached files again."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, or hub ids with pull; all cached ones for verify when none is given."""


def run(options: Options) -> dict[str, Any]:
    """Do one of the three; `pull` goes on with the others when one cannot be fetched, and fails at the end."""
    from lsm.assets.registry import registered

    if options.action == "list":
        return {"rows": _list()}
    if options.action == "verify":
        for name in options.names:
            registered(name)
        return {"rows": _verify(options.names)}
    if not options.names:
        raise UserError("lsm assets pull: name what to fetch; see: lsm assets list")
    return {"rows": _pull(options.names, quiet=options.quiet)}


def _list() -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.table import Table

    from lsm.assets.cache import cached_marker, home
    from lsm.assets.registry import REGISTRY

    table = Table("name", "kind", "MB", "cached", "what", title=f"assets (cache: {home()})", title_justify="left")
    rows = []
    for asset in REGISTRY.values():
        marker = cached_marker(asset)
        rows.append(
            {
                "name": asset.name,
                "kind": asset.kind,
                "cached": marker is not None,
                "download_bytes": asset.size_bytes,
                "sha256": asset.sha256,
                "title": asset.title,
                "licence": asset.licence,
            }
        )
        cached = "yes" if marker else "no"
        table.add_row(asset.name, asset.kind, f"{asset.size_bytes / 1e6:.0f}", cached, f"{asset.title} [{asset.licence}]")
    Console(markup=False).print(table)
    return rows


def _verify(names: tuple[str, ...]) -> list[dict[str, Any]]:
    from lsm.assets.cache import cached_marker, verify
    from lsm.assets.registry import REGISTRY

    chosen = names or tuple(name for name, asset in REGISTRY.items() if cached_marker(asset))
    problems = {name: verify(name) for name in chosen}
    for name, problem in problems.items():
        print(f"{name}: {problem or 'whole'}")
    broken = [name for name, problem in problems.items() if problem]
    if broken:
        raise UserError(f"not whole: {', '.join(broken)}; remove and fetch again with: lsm assets pull {' '.join(broken)}")
    if not problems:
        print("the cache is empty")
    return [{"name": name, "problem": problem} for name, problem in problems.items()]


def _pull(names: tuple[str, ...], *, quiet: bool) -> list[dict[str, Any]]:
    from lsm.assets.cache import discard, resolve, verify
    from lsm.assets.registry import REGISTRY

    rows, refusals = [], []
    for name in names:
        try:
            if name in REGISTRY and verify(name):
                discard(name)
            asset = resolve(name, quiet=quiet)
        except UserError as error:
            refusals.append(str(error))
            continue
        rows.append({"name": asset.name, "path": str(asset.path), "sha256": asset.sha256, "source": asset.source})
        print(f"{asset.name}: {asset.path}")
    if refusals:
        raise UserError("; ".join(refusals))
    return rows
