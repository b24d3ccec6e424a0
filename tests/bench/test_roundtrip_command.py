"""`lsm roundtrip` from text and from a corpus, by every decoder, offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lsm.bench import sample
from lsm.bench.parts import finished
from lsm.corpus.reader import Corpus
from lsm.errors import UserError
from lsm.text.segment import segment

STUB = ("--encoder", "stub", "--independent", "stub")


def test_text_through_two_decoders_and_their_controls(
    run_cli: Callable, tmp_path: Path, training_corpus: Path, adapter_folder: Path
) -> None:
    (tmp_path / "text.txt").write_text("The union is strong. The people keep the peace. Nobody has said this before, I think.")
    where = tmp_path / "scores.json"
    outcome = run_cli(
        "roundtrip", tmp_path / "text.txt", *STUB, "--corpus", training_corpus, "--adapter", adapter_folder, "--limit", 2, "--json", where,
        "--plots", tmp_path, "--resamples", 20, "--decoder", "retrieval,prefix",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    results = json.loads(where.read_text())["results"]
    assert [row["label"] for row in results["rows"]] == ["retrieval", "prefix", "prefix, shuffled vector", "prefix, zero vector"]
    for row in results["rows"]:
        assert row["n"] == 2 and row["encoder"] == "stub" and row["domain"] == "text" and row["bytes_per_sentence"] == 128
    assert len(results["texts"]) == 2 and {"text", "retrieval", "prefix"} <= set(results["texts"][0])
    assert (tmp_path / "roundtrip.png").exists() and (tmp_path / "roundtrip-by-length.png").exists()
    assert "tok:13a" in outcome.stdout


def test_inversion_keeps_the_best_attempt_within_its_budget(
    run_cli: Callable, tmp_path: Path, training_corpus: Path, adapter_folder: Path
) -> None:
    (tmp_path / "text.txt").write_text("The union is strong. The people keep the peace.")
    where = tmp_path / "scores.json"
    outcome = run_cli(
        "roundtrip", tmp_path / "text.txt", "--encoder", "stub", "--independent", "none", "--corpus", training_corpus,
        "--adapter", adapter_folder, "--decoder", "retrieval,prefix,inversion", "--no-controls", "--resamples", 0, "--json", where,
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    rows = {row["label"]: row for row in json.loads(where.read_text())["results"]["rows"]}
    assert list(rows) == ["retrieval", "prefix", "inversion"]
    assert 0 < rows["inversion"]["encoder_calls"] <= 64 and rows["prefix"]["encoder_calls"] == 0
    # What the LM thinks of the wording counts a little beside the cosine.
    assert rows["inversion"]["cosine"] >= max(rows["retrieval"]["cosine"], rows["prefix"]["cosine"]) - 0.02 > 0


def test_a_corpus_that_is_its_own_store_comes_back_whole(run_cli: Callable, tmp_path: Path, training_corpus: Path) -> None:
    where = tmp_path / "scores.json"
    outcome = run_cli(
        "roundtrip", training_corpus, "--independent", "none", "--decoder", "retrieval", "--corpus", training_corpus, "--limit", 30,
        "--json", where, "--show", 1,
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    (row,) = json.loads(where.read_text())["results"]["rows"]
    assert row["exact_match"] == 1 and row["cosine"] == pytest.approx(1, abs=1e-3) and row["cosine_independent"] is None


def test_noise_costs_words(run_cli: Callable, tmp_path: Path, training_corpus: Path) -> None:
    scores = []
    for noise in (0, 4):
        where = tmp_path / f"{noise}.json"
        options = ("--independent", "none", "--decoder", "retrieval", "--corpus", training_corpus, "--limit", 30, "--noise", noise)
        assert run_cli("roundtrip", training_corpus, *options, "--json", where, "--resamples", 0).code == 0
        scores.append(json.loads(where.read_text())["results"]["rows"][0]["exact_match"])
    assert scores[1] < scores[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--decoder", "magic"], "magic"),
        (["--decoder", "retrieval"], "--index"),
        (["--decoder", "none", "--residual", "superposition", "--residual-dims", "7"], "--residual-dims 7"),
        (["--decoder", "none", "--residual", "superposition", "--prior", "guess"], "--prior guess"),
        (["--decoder", "none", "--residual", "superposition", "--residual-dims", "64", "--prior", ""], "--prior (nothing)"),
        (["--limit", "0"], "--limit 0"),
        (["--noise", "-1"], "--noise -1"),
        (["--noise", "0.1", "--negation", "3"], "--negation"),
    ],
)
def test_what_cannot_be_done_is_refused(run_cli: Callable, training_corpus: Path, options: list[str], said: str) -> None:
    outcome = run_cli("roundtrip", training_corpus, "--independent", "none", *options)
    assert outcome.code == 2 and said in outcome.stderr and "Traceback" not in outcome.stderr


def test_the_draw_is_seeded_distinct_and_in_order(training_corpus: Path) -> None:
    corpus = Corpus.open(training_corpus)
    drawn = sample.draw(sample.corpus_sentences(corpus), 25, seed=3)
    again = sample.draw(sample.corpus_sentences(corpus), 25, seed=3)
    other = sample.draw(sample.corpus_sentences(corpus), 25, seed=4)
    assert drawn.texts == again.texts != other.texts
    assert len(set(drawn.texts)) == 25 and (np.diff(drawn.document_N) >= 0).all() and drawn.document_N.min() == 0
    assert len(sample.draw([["one.", "one.", "two."]], 10, seed=0).texts) == 2
    whose = {text: doc for doc in range(corpus.n_documents) for text in corpus.texts(doc)}
    numbers = [*drawn.document_N.tolist(), *drawn.others_document_N.tolist()]
    named = {(number, whose[text]) for number, text in zip(numbers, [*drawn.texts, *drawn.others], strict=True)}
    assert len(named) == len(set(numbers)) == max(numbers) + 1


def test_pieces_of_a_long_sentence_are_no_sentences() -> None:
    text = "A fox waits. " + "the hare runs through the wood, and " * 9 + "sleeps. The end."
    sentences = segment(text, cap_characters=200)[1]
    assert len(sentences) > 3
    assert [sentence.text for sentence in sample.whole_sentences(sentences)] == ["A fox waits.", "The end."]


def test_without_a_store_or_an_adapter_inversion_is_what_is_left(run_cli: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A fox waits by the sea. The hare runs.")
    options = ("--encoder", "stub", "--lm", "stub", "--independent", "none", "--resamples", 0, "--no-controls", "--encoder-calls", 3)
    outcome = run_cli("roundtrip", tmp_path / "a.txt", *options, "--json", tmp_path / "r.json")
    assert outcome.code == 0, outcome.stderr
    assert [row["decoder"] for row in json.loads((tmp_path / "r.json").read_text())["results"]["rows"]] == ["inversion"]


def test_results_of_other_options_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    assert finished(path, {"limit": "3"}) is None
    path.write_text(json.dumps({"results": {"asked": {"limit": "3"}, "rows": [1]}}))
    assert finished(path, {"limit": "3"})["rows"] == [1]
    with pytest.raises(UserError, match=r"limit 3 → 4.*seed None → 0"):
        finished(path, {"limit": "4", "seed": "0"})


def test_an_endless_input_is_not_read_to_its_end() -> None:
    def endless():
        number = 0
        while True:
            yield [f"Sentence {number}-{k}." for k in range(10)]
            number += 1

    assert sample.draw(endless(), 4, seed=0).n_pool == 200
