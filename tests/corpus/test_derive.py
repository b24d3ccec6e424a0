"""Corpora made of corpora: rows come over bit for bit, every result is a whole corpus, and what does not go together is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.commands.corpus import SPLIT_SALT
from lsm.corpus import derive as module
from lsm.corpus.choose import Criteria, without_repetitions
from lsm.corpus.derive import Chosen, derive
from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import split_documents
from lsm.corpus.verify import verify
from lsm.errors import UserError
from lsm.files import atomic_folder

TEXTS = {
    "lake": "The lake froze early that year. Nobody could remember such a winter. Boats lay in the ice.",
    "again": "The lake froze early that year! Nobody could remember such a WINTER. Then came a thaw at last.",
    "short": "One line only here.",
    "city": "A city of glass stood there. It had nine gates and a wall. The gates were shut at night. Guards slept in the towers above.",
    "copy": "One line only here.",
}


@pytest.fixture
def corpus(run_cli: Callable, tmp_path: Path) -> Corpus:
    return encoded(run_cli, tmp_path, "corpus", TEXTS)


def encoded(run_cli: Callable, folder: Path, name: str, texts: dict[str, str], *more: str) -> Corpus:
    (folder / f"{name}-texts").mkdir()
    for key, text in texts.items():
        (folder / f"{name}-texts" / f"{key}.txt").write_text(text)
    how = ["--encoder", "stub", "--shard-rows", "5", "--quiet", *more]
    assert run_cli("encode-corpus", folder / f"{name}-texts", "--out", folder / name, *how).code == 0
    return Corpus.open(folder / name)


def content(corpus: Corpus) -> dict[str, tuple]:
    """Everything that is stored of each document."""
    found = {}
    for number, doc_id in enumerate(corpus.doc_ids):
        row = corpus.documents.slice(number, 1).to_pylist()[0]
        kept = {name: row[name] for name in ("source", "title", "lead", "text_sha256", "n_sentences")}
        codes = {} if corpus.residual is None else {name: array.tolist() for name, array in corpus.residual_arrays(number).items()}
        found[doc_id] = (kept, corpus.sentences(number).to_pylist(), corpus.vectors(number).tobytes(), codes)
    return found


def test_split_and_merged_is_the_same(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    assert run_cli("corpus", "split", corpus.path, "--out", tmp_path / "parts", "--held-out-fraction", "0.4").code == 0
    parts = [tmp_path / "parts" / name for name in ("train", "held-out")]
    numbers = split_documents(corpus.doc_ids, 0.4, salt=SPLIT_SALT)
    assert [Corpus.open(part).doc_ids for part in parts] == [[corpus.doc_ids[n] for n in some] for some in numbers]
    outcome = run_cli("corpus", "merge", *parts, parts[0], "--out", tmp_path / "whole")
    assert outcome.code == 0 and f"{len(numbers[0])} documents left out" in outcome.stdout
    merged = Corpus.open(tmp_path / "whole")
    assert content(merged) == content(corpus) and merged.n_sentences == corpus.n_sentences
    for path in (*parts, tmp_path / "whole"):
        verify(Corpus.open(path))


def test_codes_come_over_with_their_rows(run_cli: Callable, tmp_path: Path) -> None:
    how = ["--residual", "superposition", "--residual-lm", "stub", "--residual-dims", "64", "--verify-codes"]
    corpus = encoded(run_cli, tmp_path, "codes", TEXTS | {"long": "A sentence that needs more than one code since it goes on. " * 2}, *how)
    assert any((corpus.residual_arrays(number)["code_count"] > 1).any() for number in range(corpus.n_documents))
    assert run_cli("corpus", "filter", corpus.path, "--out", tmp_path / "some", "--min-sentences", "2").code == 0
    some = Corpus.open(tmp_path / "some")
    verify(some)
    assert content(some) == {doc_id: all_of for doc_id, all_of in content(corpus).items() if len(all_of[1]) >= 2}
    assert run_cli("inspect", some.path, "--verify").code == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=5, max_size=5).filter(any))
def test_any_choice_is_a_whole_corpus(tmp_path_factory: pytest.TempPathFactory, kept: list[bool]) -> None:
    corpus, out = Corpus.open(shared(tmp_path_factory)), tmp_path_factory.mktemp("out") / "chosen"
    derive(out, [Chosen(corpus, np.array(kept))], {"action": "test"})
    found = Corpus.open(out)
    verify(found)
    assert content(found) == {doc_id: content(corpus)[doc_id] for doc_id, keep in zip(corpus.doc_ids, kept, strict=True) if keep}


def shared(factory: pytest.TempPathFactory) -> Path:
    """One corpus for all examples of a property."""
    folder = factory.getbasetemp() / "shared-corpus"
    if not folder.exists():
        from lsm.cli import main

        with atomic_folder(folder) as made:
            for key, text in TEXTS.items():
                (made / f"{key}.txt").write_text(text)
        where = ["--out", str(folder / "corpus"), "--encoder", "stub", "--shard-rows", "5", "--quiet"]
        assert main(["encode-corpus", str(folder / "*.txt"), *where]) == 0
    return folder / "corpus"


def test_interrupted_between_shards_it_goes_on(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Chosen(corpus, np.ones(corpus.n_documents, dtype=bool))
    derive(tmp_path / "unbroken", [everything], {"action": "test"})
    copy, calls = module._copy, []

    def dies(*arguments: object) -> dict:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_copy", dies)
    with pytest.raises(KeyboardInterrupt):
        derive(tmp_path / "out", [everything], {"action": "test"})
    assert not (tmp_path / "out" / "manifest.json").exists()
    derive(tmp_path / "out", [everything], {"action": "test"})
    assert len(calls) == corpus.n_shards + 1  # the first shard was not written twice
    assert Corpus.open(tmp_path / "out").fingerprint == Corpus.open(tmp_path / "unbroken").fingerprint


def test_what_repeats_is_left_out(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    def kept(corpus: Corpus, overlap: float, **how: object) -> set[str]:
        keep_G = without_repetitions(corpus, overlap, **how)  # type: ignore[arg-type]
        return {doc_id.rsplit("/", 1)[-1].removesuffix(".txt") for doc_id, keep in zip(corpus.doc_ids, keep_G, strict=True) if keep}

    names = kept(corpus, 1.0)
    assert names >= {"city", "lake", "again"} and len(names & {"short", "copy"}) == 1  # one text under two ids
    assert len(kept(corpus, 0.6) & {"lake", "again"}) == 1 and len(kept(corpus, 0.7) & {"lake", "again"}) == 2  # two of three sentences
    held_out = encoded(
        run_cli, tmp_path, "bench", {"gates": "It had nine gates and a wall. The gates were shut at night. Something else was said there."}
    )
    assert "city" not in kept(corpus, 0.5, unlike=[held_out], within=False) and "city" in kept(corpus, 0.6, unlike=[held_out], within=False)
    assert kept(corpus, 0.5, unlike=[held_out], within=False) >= {"short", "copy", "lake", "again"}
    outcome = run_cli("corpus", "dedup", corpus.path, "--out", tmp_path / "distinct", "--overlap", "0.6", "--unlike", held_out.path)
    assert outcome.code == 0 and "2 documents left out" in outcome.stdout  # copy and the second lake; four tenths of city are not enough
    verify(Corpus.open(tmp_path / "distinct"))


def test_criteria(corpus: Corpus) -> None:
    def kept(**asked: object) -> int:
        return int(Criteria(**asked).keep(corpus).sum())  # type: ignore[arg-type]

    assert kept() == 5 and kept(min_sentences=2) == 3 and kept(max_sentences=1) == 2 and kept(min_sentences=3, max_sentences=3) == 2
    assert kept(source="city*") == 1 and kept(doc_ids=frozenset(corpus.doc_ids[:2])) == 2 and kept(max_truncated=0.0) == 5
    read = corpus.column

    def column(name: str) -> np.ndarray:  # as if the encoder had cut the first sentence of every document
        return np.isin(np.arange(corpus.n_sentences), corpus.starts) if name == "truncated" else read(name)

    corpus.column = column  # type: ignore[method-assign]
    assert kept(max_truncated=0.0) == 0 and kept(max_truncated=1 / 3) == 3 and kept(max_truncated=1.0) == 5


def test_parquet_holds_every_row(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    for precision, exact in (("float32", np.float32), ("float16", np.float16)):
        outcome = run_cli("corpus", "convert", corpus.path, "--out", tmp_path / precision, "--vectors", precision)
        assert outcome.code == 0, outcome.stderr
        table = pq.read_table(tmp_path / precision / "data")
        z_SD = np.stack(table["semantic"].to_pylist()).astype(exact)
        wanted_SD = np.concatenate([corpus.vectors(number) for number in range(corpus.n_documents)])
        np.testing.assert_array_equal(z_SD, wanted_SD.astype(exact))
        assert table["text"].to_pylist() == corpus.text_at(np.arange(corpus.n_sentences))
        ids = np.repeat(corpus.doc_ids, corpus.documents["n_sentences"].to_numpy()).tolist()
        assert table["doc_id"].to_pylist() == ids
    assert run_cli("corpus", "convert", corpus.path, "--out", tmp_path / "float16").code == 2


def test_hugging_face_datasets_reads_it(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert run_cli("corpus", "convert", corpus.path, "--out", tmp_path / "out").code == 0
    rows = datasets.load_dataset("parquet", data_dir=str(tmp_path / "out" / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == corpus.n_sentences and len(rows[0]["semantic"]) == corpus.dim and rows[0]["text"] == corpus.texts(0)[0]


def test_what_does_not_go_together_is_refused(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    other = encoded(run_cli, tmp_path, "other", {"lake": "Another text under the same name."})
    shorter = encoded(run_cli, tmp_path, "shorter", {"new": "This is new."}, "--cap-characters", "50")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("x")
    assert set(corpus.doc_ids) & set(other.doc_ids)
    for arguments, message in (
        (["merge", corpus.path, other.path], "has other text in"),
        (["merge", corpus.path, shorter.path], "differs from .* in its segmentation"),
        (["filter", corpus.path], "ask for something"),
        (["filter", corpus.path, "--min-sentences", "99"], "no document is left"),
        (["filter", corpus.path, "--ids", empty], "is empty"),
        (["filter", corpus.path, "--vectors", "float16"], "--vectors is no option of lsm corpus filter"),
        (["split", corpus.path, other.path], "takes one corpus"),
        (["split", corpus.path, "--held-out-fraction", "1"], "must be between 0 and 1"),
        (["dedup", tmp_path / "nowhere"], "does not exist"),
    ):
        outcome = run_cli("corpus", *arguments, "--out", tmp_path / "refused")
        assert outcome.code == 2, arguments
        assert re.search(message, outcome.stderr), (outcome.stderr, message)
    assert "holds something else already" in run_cli("corpus", "merge", corpus.path, "--out", taken).stderr
    assert (taken / "mine.txt").read_text() == "x"
    assert run_cli("corpus", "merge", corpus.path, "--out", tmp_path / "made").code == 0
    outcome = run_cli("corpus", "filter", corpus.path, "--min-sentences", "2", "--out", tmp_path / "made")
    assert outcome.code == 2 and "was made otherwise" in outcome.stderr


def test_what_is_left_of_a_split_can_be_split_again() -> None:
    ids = [f"document {number}" for number in range(2000)]
    left = [ids[number] for number in split_documents(ids, 0.1, salt=SPLIT_SALT)[0]]
    assert 60 < len(split_documents(left, 0.05)[1]) < 130, "by the hash of lsm pretrain it is as if it had never been split"


def test_damage_is_not_passed_on(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    path = corpus.path / "shards" / "00001" / "semantic.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    outcome = run_cli("corpus", "merge", corpus.path, "--out", tmp_path / "merged")
    assert outcome.code == 2 and "00001/semantic.npy is missing or differs from its hash" in outcome.stderr
    assert "is unfinished" in run_cli("corpus", "convert", tmp_path / "merged", "--out", tmp_path / "out").stderr


def test_other_scripts_and_short_documents_are_compared(run_cli: Callable, tmp_path: Path) -> None:
    lake = "湖在那一年很早就结冰了，没有人记得这样的冬天，船都冻在冰里。后来终于来了一场融雪的春天，湖水又流动起来了。"
    corpus = encoded(run_cli, tmp_path, "corpus", {"lake": lake, "answers": "Yes. No."})
    copied = encoded(run_cli, tmp_path, "held-out", {"other": f"{lake}又有一句别的话说在这里，它是全新的一句话。", "same": "Yes. No."})
    assert not without_repetitions(corpus, 0.5, unlike=[copied], within=False).any()
    assert not without_repetitions(corpus, 0.5, unlike=[corpus]).any() and without_repetitions(corpus, 0.5).all()


def test_where_it_may_not_be_written(run_cli: Callable, corpus: Corpus, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("\ufeff" + corpus.doc_ids[0] + "\r\n" + corpus.doc_ids[1] + "\r\n", encoding="utf-8")
    assert run_cli("corpus", "filter", corpus.path, "--ids", ids, "--out", tmp_path / "two").code == 0
    assert Corpus.open(tmp_path / "two").doc_ids == corpus.doc_ids[:2]
    ids.write_text(corpus.doc_ids[2])
    outcome = run_cli("corpus", "filter", corpus.path, "--ids", ids, "--out", tmp_path / "two")
    assert outcome.code == 2 and "was made otherwise: made_by" in outcome.stderr
    for out in (corpus.path, corpus.path / "parts", corpus.path / "shards" / "00009"):
        outcome = run_cli("corpus", "split", corpus.path, "--out", out)
        assert outcome.code == 2 and "lies inside the corpus" in outcome.stderr
    outcome = run_cli("encode-corpus", tmp_path / "corpus-texts", "--out", tmp_path / "two", "--encoder", "stub", "--append")
    assert outcome.code == 2 and "lsm corpus merge" in outcome.stderr


def test_stopped_before_its_manifest_it_goes_on(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Chosen(corpus, np.ones(corpus.n_documents, dtype=bool))

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_manifest", dies)
        with pytest.raises(KeyboardInterrupt):
            derive(tmp_path / "out", [everything], {"action": "test"})
    with pytest.raises(UserError, match="run its lsm corpus command again"):
        Corpus.open(tmp_path / "out")
    derive(tmp_path / "out", [everything], {"action": "test"})
    assert content(Corpus.open(tmp_path / "out")) == content(corpus)
