"""Corpus recipes: a YAML file that says where documents come from, under which licence, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lsm.config import STRICT, load_settings
from lsm.errors import UserError


@dataclass(kw_only=True)
class AssetFiles:
    """Files of an asset that `lsm assets pull` fetches."""

    __pydantic_config__ = STRICT

    name: str
    """The asset."""
    files: str
    """Glob of the files to read below the asset's folder, `folder/*.txt`; documents are named after the files."""


@dataclass(kw_only=True)
class HubDataset:
    """A data set on the Hugging Face hub, streamed."""

    __pydantic_config__ = STRICT

    dataset: str
    """Its id, `owner/name`."""
    config: str | None = None
    """The subset, where the data set has several."""
    split: str = "train"
    """The split."""


@dataclass(kw_only=True)
class Recipe:
    """One corpus recipe, `corpora/NAME.yaml`."""

    __pydantic_config__ = STRICT

    name: str
    """What a person types as INPUT; equals the file's name."""
    title: str
    """One line for people."""
    licence: str
    """Licence or legal state of the texts."""
    homepage: str
    """Where the corpus and its terms are described."""
    language: str = "en"
    """Two-letter code."""
    asset: AssetFiles | None = None
    """Read files of an asset."""
    hub: HubDataset | None = None
    """Or stream a data set of the hub."""
    files: str | None = None
    """Or read files that lie beside the recipe: a glob below its folder, as above."""
    fields: dict[str, str] = field(default_factory=dict)
    """Names of the row's parts where they are not `text`, `messages`, `id` and `title`."""
    notes: str = ""
    """Anything worth knowing before use."""

    def __post_init__(self) -> None:
        problems = []
        if sum(source is not None for source in (self.asset, self.hub, self.files)) != 1:
            problems.append("set exactly one of asset, hub and files")
        if unknown := set(self.fields) - {"text", "messages", "id", "title"}:
            problems.append(f"fields: {', '.join(sorted(unknown))} is none of text, messages, id, title")
        if problems:
            raise ValueError("; ".join(problems))


def corpora_folder() -> Path:
    """The shipped recipes: `corpora/` of a checkout, `lsm/_corpora` of an installed wheel.

    Raises:
        UserError: neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_corpora", package.parent / "corpora"):
        if folder.is_dir():
            return folder
    raise UserError(f"the corpus recipes are missing beside {package}; install lsm again")


@cache
def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in corpora_folder().glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """The shipped recipe called `name`.

    Raises:
        UserError: no such recipe, or a YAML file that does not fit (every problem is listed).
    """
    if name not in recipe_names():
        raise UserError(f"recipe {name} does not exist; recipes: {', '.join(recipe_names())}")
    path = corpora_folder() / f"{name}.yaml"
    recipe = load_settings(Recipe, path)
    if recipe.name != name:
        raise UserError(f"config {path}: name is {recipe.name!r} but the file is called {name!r}; make them equal")
    return recipe
