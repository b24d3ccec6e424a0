"""Push and pull against a hub on this machine: what comes back is bit for bit what went, whole or not a corpus, of the commit asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lsm.corpus.reader import Corpus
from lsm.corpus.verify import verify
from lsm.errors import UserError

NAME = "someone/lakes"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three shards, encoded once."""
    from lsm.cli import main

    folder = tmp_path_factory.mktemp("made")
    (folder / "texts").mkdir()
    for number in range(5):
        (folder / "texts" / f"{number}.txt").write_text(f"The lake of day {number} froze early. Nobody could remember such a winter.")
    how = ["--out", str(folder / "corpus"), "--encoder", "stub", "--shard-rows", "4", "--quiet"]
    assert main(["encode-corpus", str(folder / "texts"), *how]) == 0
    return folder / "corpus"


@pytest.fixture
def corpus(made: Path, tmp_path: Path) -> Corpus:
    return Corpus.open(shutil.copytree(made, tmp_path / "corpus"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_there_and_back(run_cli: Callable, hub: Any, corpus: Corpus, tmp_path: Path) -> None:
    outcome = run_cli("corpus", "push", corpus.path, NAME, "--licence", "cc-by-4.0", "--private")
    assert outcome.code == 0, outcome.stderr
    assert hub.private == {NAME} and f"lsm corpus pull {NAME}" in outcome.stdout
    outcome = run_cli("corpus", "pull", NAME, tmp_path / "back")
    assert outcome.code == 0, outcome.stderr
    back = Corpus.open(tmp_path / "back")
    verify(back)
    before, after = bytes_of(corpus.path), bytes_of(back.path)
    assert {name: after.pop(name) for name in before} == before
    assert sorted(after) == ["README.md", "pull.json"] and back.fingerprint == corpus.fingerprint
    outcome = run_cli("corpus", "pull", NAME, tmp_path / "back")  # whole already
    assert outcome.code == 0 and bytes_of(back.path).keys() == {*before, "README.md", "pull.json"}


def test_the_card_says_what_it_is(run_cli: Callable, hub: Any, corpus: Corpus) -> None:
    licences = (("cc0-1.0", "cc0-1.0", None), ("Public domain (USA)", "other", "Public domain (USA)"), (None, "unknown", None))
    for given, licence, name in licences:
        assert run_cli("corpus", "push", corpus.path, NAME, *(["--licence", given] if given else []), "--quiet").code == 0
        card = hub.files(NAME)["README.md"].decode()
        _, head, body = card.split("---\n", 2)
        found = yaml.safe_load(head)
        assert found["license"] == licence and found.get("license_name") == name and f"texts: {given or 'unknown'}." in body
    assert found["configs"][0]["data_files"] == "shards/*/sentences.parquet"
    counts = ("| documents | 5 |", "| sentences | 10 in 3 shards |", "0 (0.00%)")
    for told in (*counts, corpus.fingerprint, "| name | `stub` |", f"lsm corpus pull {NAME}"):
        assert told in body, told


def test_manifest_and_card_go_last_and_old_shards_go(run_cli: Callable, hub: Any, corpus: Corpus, tmp_path: Path) -> None:
    assert run_cli("corpus", "push", corpus.path, NAME, "--quiet").code == 0
    first, *_, last = hub.repositories[NAME]["commits"].values()
    assert "manifest.json" not in first and list(last)[-1] == "manifest.json"
    assert not any(name.startswith("index/") for name in last)
    assert run_cli("corpus", "filter", corpus.path, "--source", "[01].txt", "--out", tmp_path / "few", "--quiet").code == 0
    n_sent = len(hub.lfs)
    assert run_cli("corpus", "push", tmp_path / "few", NAME, "--quiet").code == 0
    assert {name for name in hub.files(NAME) if name.startswith("shards/")} == {
        f"shards/00000/{name}" for name in ("semantic.npy", "sentences.parquet", "documents.parquet", "done.json")
    }
    assert "derived.json" in hub.files(NAME) and "plan.json" not in hub.files(NAME)
    assert len(hub.lfs) == n_sent  # the shard's vectors were there
    assert run_cli("corpus", "pull", NAME, tmp_path / "back", "--quiet").code == 0
    verify(Corpus.open(tmp_path / "back"))


def test_a_revision_is_kept(run_cli: Callable, hub: Any, corpus: Corpus, tmp_path: Path) -> None:
    assert run_cli("corpus", "push", corpus.path, NAME, "--quiet").code == 0
    commit = hub.repositories[NAME]["branches"]["main"]
    assert run_cli("corpus", "filter", corpus.path, "--source", "[012].txt", "--out", tmp_path / "few", "--quiet").code == 0
    assert run_cli("corpus", "push", tmp_path / "few", NAME, "--quiet", "--revision", "small").code == 0
    for revision, n_documents in ((None, 5), ("small", 3), (commit, 5)):
        out = tmp_path / f"of-{revision}"
        assert run_cli("corpus", "pull", NAME, out, "--quiet", *(["--revision", revision] if revision else [])).code == 0
        assert Corpus.open(out).n_documents == n_documents
    outcome = run_cli("corpus", "pull", NAME, tmp_path / "of-None", "--revision", "small")
    assert outcome.code == 2 and commit in outcome.stderr and "choose another folder" in outcome.stderr
    assert run_cli("corpus", "push", tmp_path / "few", NAME, "--quiet").code == 0
    assert run_cli("corpus", "pull", NAME, tmp_path / "of-None", "--quiet").code == 0  # main has moved on, the folder has not
    assert Corpus.open(tmp_path / "of-None").n_documents == 5


def test_interrupted_it_is_no_corpus_and_goes_on(run_cli: Callable, hub: Any, corpus: Corpus, tmp_path: Path) -> None:
    assert run_cli("corpus", "push", corpus.path, NAME, "--quiet").code == 0
    hub.refuse_after = 6
    outcome = run_cli("corpus", "pull", NAME, tmp_path / "back", "--quiet")
    assert outcome.code == 2 and outcome.stderr.count("\n") == 1, outcome.stderr
    with pytest.raises(UserError, match=r"unfinished .*lsm corpus pull"):
        Corpus.open(tmp_path / "back")
    assert "lsm corpus pull again" in run_cli("inspect", tmp_path / "back").stdout
    before = {name for name in bytes_of(tmp_path / "back") if name.startswith("shards/")}
    hub.refuse_after, n_before = None, hub.n_downloads
    assert run_cli("corpus", "pull", NAME, tmp_path / "back", "--quiet").code == 0
    n_files = len(hub.files(NAME)) - 1  # without .gitattributes
    assert before and hub.n_downloads - n_before <= n_files - len(before)
    verify(Corpus.open(tmp_path / "back"))


def test_what_differs_from_its_hash_is_fetched_again_or_refused(run_cli: Callable, hub: Any, corpus: Corpus, tmp_path: Path) -> None:
    assert run_cli("corpus", "push", corpus.path, NAME, "--quiet").code == 0
    back = tmp_path / "back"
    assert run_cli("corpus", "pull", NAME, back, "--quiet").code == 0
    for name in ("shards/00001/semantic.npy", "shards/00000/sentences.parquet", "shards/00002/done.json", "documents.parquet"):
        (back / name).write_bytes((back / name).read_bytes()[:-3])
    assert run_cli("inspect", back, "--verify").code == 2
    assert run_cli("corpus", "pull", NAME, back, "--quiet").code == 0
    verify(Corpus.open(back))
    damaged = dict(hub.files(NAME))
    damaged["shards/00001/semantic.npy"] = damaged["shards/00001/semantic.npy"][:-1] + b"?"
    hub.commit(NAME, damaged)
    outcome = run_cli("corpus", "pull", NAME, tmp_path / "other", "--quiet")
    assert outcome.code == 2 and "shards/00001/semantic.npy is missing or differs from its hash" in outcome.stderr
    assert not (tmp_path / "other" / "manifest.json").exists() and not (tmp_path / "other" / "shards/00001/semantic.npy").exists()
    (corpus.path / "shards/00000/semantic.npy").write_bytes(b"?")
    outcome = run_cli("corpus", "push", corpus.path, NAME, "--quiet")
    assert outcome.code == 2 and "differs from its hash" in outcome.stderr


def test_a_manifest_alone_is_mended(run_cli: Callable, hub: Any, corpus: Corpus, tmp_path: Path) -> None:
    assert run_cli("corpus", "push", corpus.path, NAME, "--quiet").code == 0
    back = tmp_path / "back"
    assert run_cli("corpus", "pull", NAME, back, "--quiet").code == 0
    whole = (back / "manifest.json").read_bytes()
    for damaged in (whole.replace(b'"n_characters": ', b'"n_characters": 1', 1), whole[:-9]):
        assert damaged != whole
        (back / "manifest.json").write_bytes(damaged)
        assert run_cli("corpus", "pull", NAME, back, "--quiet").code == 0
        assert (back / "manifest.json").read_bytes() == whole
    (back / "manifest.json").write_bytes(damaged)
    (back / "shards/00001/semantic.npy").write_bytes(b"mine?")
    outcome = run_cli("corpus", "pull", NAME, back, "--quiet")
    assert outcome.code == 2 and f"delete {back / 'manifest.json'} and pull again" in outcome.stderr
    assert (back / "shards/00001/semantic.npy").read_bytes() == b"mine?"
    (back / "manifest.json").unlink()
    assert run_cli("corpus", "pull", NAME, back, "--quiet").code == 0
    verify(Corpus.open(back))


def test_a_manifest_that_names_other_files_is_not_followed(run_cli: Callable, hub: Any, corpus: Corpus, tmp_path: Path) -> None:
    assert run_cli("corpus", "push", corpus.path, NAME, "--quiet").code == 0
    (tmp_path / "mine").write_text("kept")
    for key, value in (("name", "../.."), ("files", {"../../../mine": "0" * 64})):
        manifest = json.loads(hub.files(NAME)["manifest.json"])
        manifest["shards"][0][key] = value
        hub.commit(NAME, hub.files(NAME) | {"manifest.json": json.dumps(manifest).encode()}, branch=key)
        outcome = run_cli("corpus", "pull", NAME, tmp_path / key, "--revision", key, "--quiet")
        assert outcome.code == 2 and "not to be trusted" in outcome.stderr
    assert (tmp_path / "mine").read_text() == "kept"


def test_refusals_are_one_clear_line(run_cli: Callable, hub: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> str:
        outcome = run_cli("corpus", *arguments, "--quiet")
        assert outcome.code == 2 and outcome.stderr.count("\n") == 1, outcome.stderr
        return outcome.stderr

    assert "private one needs a token" in refused("pull", "nobody/nothing", tmp_path / "a") and not (tmp_path / "a").exists()
    hub.commit("someone/else", {"data.csv": b"1,2"})
    assert "holds no corpus" in refused("pull", "someone/else", tmp_path / "b")
    assert run_cli("corpus", "push", corpus.path, NAME, "--quiet").code == 0
    assert run_cli("corpus", "pull", NAME, tmp_path / "b", "--quiet").code == 0  # nothing of the other stands in the way
    (tmp_path / "more.txt").write_text("One more day.")
    outcome = run_cli("encode-corpus", tmp_path / "more.txt", "--out", tmp_path / "b", "--encoder", "stub", "--append", "--quiet")
    assert outcome.code == 2 and "lsm corpus merge" in outcome.stderr
    hub.commit("someone/half", {"shards/00000/semantic.npy": b""})
    assert "a push that has not ended" in refused("pull", "someone/half", tmp_path / "c")
    assert "no such branch, tag or commit" in refused("pull", "someone/else", tmp_path / "d", "--revision", "v9")
    assert "write: lsm corpus pull OWNER/NAME FOLDER" in refused("pull", NAME)
    assert "write: lsm corpus push CORPUS OWNER/NAME" in refused("push", corpus.path, NAME, "--out", tmp_path / "x")
    assert "no hub id" in refused("push", corpus.path, "a/b/c")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert "holds something else already (letter.txt)" in refused("pull", NAME, tmp_path / "full")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "401" in refused("push", corpus.path, NAME)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "hf auth login" in refused("push", corpus.path, NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused("pull", NAME, tmp_path / "e")
    monkeypatch.setenv("LSM_OFFLINE", "1")
    assert "LSM_OFFLINE=1 is set" in refused("pull", NAME, tmp_path / "f")
