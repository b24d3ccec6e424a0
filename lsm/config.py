"""Settings: strict YAML into light dataclasses. An unknown key is an error that names its path; nothing here imports torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from lsm.errors import UserError

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid")
"""Give it to every settings dataclass: `__pydantic_config__ = STRICT`; an unknown key is then refused at any depth."""


@dataclasses.dataclass(kw_only=True)
class CommonOptions:
    """Options that every verb takes."""

    json: Path | None = None
    """Also write the result as one JSON object to this file."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Seed of everything random."""
    quiet: bool = False
    """Print results only, no plan and no progress."""


def load_settings(kind: type[T], path: Path) -> T:
    """Read a YAML file into the settings dataclass `kind`.

    Raises:
        UserError: missing file, broken YAML, unknown key or wrong type; every problem is listed with its path.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist") from error
    except OSError as error:
        raise UserError(f"config {path} cannot be read ({error.strerror}); name a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    return settings_from(kind, raw or {}, origin=str(path))


def settings_kind_of(kinds: Any, path: Path | None) -> Any:
    """Which settings class of several (a union) the YAML file is for: the one whose `kind` it names, or the first.

    Raises:
        UserError: no class has the `kind` that the file names.
    """
    members = get_args(kinds) or (kinds,)
    if path is None:
        return members[0]
    named = load_settings(dict[str, Any], path).get("kind")
    for member in members:
        if getattr(member, "kind", None) == named:
            return member
    if named is None:
        return members[0]
    there_are = ", ".join(repr(member.kind) for member in members if hasattr(member, "kind"))
    raise UserError(f"config {path}: kind {named!r} is not one that this verb knows" + (f" ({there_are})" if there_are else ""))


def settings_from(kind: type[T], raw: Any, *, origin: str) -> T:
    """Check `raw` (nested dicts) against the settings dataclass `kind`; `origin` names its source in errors."""
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise UserError(f"config {origin}: {problems}") from error


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain nested dicts, ready for YAML or JSON."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def to_yaml(settings: Any) -> str:
    """A settings dataclass as YAML that `load_settings` reads back."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False)
