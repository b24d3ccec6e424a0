"""`lsm evaluate`: which documents are judged, what comes out, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.bench import evaluation
from lsm.bench.judged import choose_documents
from lsm.config import settings_from
from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import split_documents
from lsm.encode.encoder import load_encoder
from lsm.files import write_json
from lsm.latent.heads import VectorSampling
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import ModelSettings, PretrainSettings
from lsm.latent.trained_on import read_trained_on
from lsm.latent.transformer import LatentConfig, LatentTransformer


def test_another_corpus_with_fitted_controls(
    run_cli: Callable, tmp_path: Path, model_folder: Path, training_corpus: Path, held_out_corpus: Path
) -> None:
    where = tmp_path / "scores.json"
    outcome = run_cli(
        "evaluate", model_folder, "--corpus", held_out_corpus, "--train-corpus", training_corpus, "--json", where, "--plots", tmp_path,
        "--resamples", 50, "--shuffled-positions", 18,
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert "1 documents of" in outcome.stderr and "left out" in outcome.stderr
    results = json.loads(where.read_text())["results"]
    rows = {row["predictor"]: row for row in results["rows"]}
    assert {"model", evaluation.ORDER_SHUFFLED, evaluation.OTHER_CONTEXT, "last vector", "running mean", "corpus mean", "ridge"} < set(rows)
    assert rows["model"]["n_documents"] == 6 and rows[evaluation.ORDER_SHUFFLED]["n"] == 18
    assert rows[evaluation.OTHER_CONTEXT]["recall_at_10"] < rows["model"]["recall_at_10"]
    assert rows["corpus mean"]["effective_rank"] == pytest.approx(1, abs=1e-2)
    first = results["differences"][0]
    assert first["is_best_control"] and first["control"] == results["best_control"] and not first["control"].startswith("model")
    low, high = first["intervals"]["mrr"]
    assert low <= first["mrr"] <= high
    assert (tmp_path / "next-sentence.png").stat().st_size > 1000
    assert "recall" in outcome.stdout and "best control" in outcome.stdout


def test_the_context_curve_pairs_every_length(run_cli: Callable, model_folder: Path, held_out_corpus: Path, tmp_path: Path) -> None:
    asked = ["evaluate", model_folder, "--corpus", held_out_corpus, "--resamples", 20]
    outcome = run_cli(*asked, "--context-curve", "1,3", "--json", tmp_path / "scores.json", "--plots", tmp_path)
    assert outcome.code == 0, outcome.stderr
    rows = json.loads((tmp_path / "scores.json").read_text())["results"]["context_curve"]
    assert [(row["context"], row["length"]) for row in rows[1:]] == [
        ("truncated", 1), ("shuffled beyond", 1), ("truncated", 3), ("shuffled beyond", 3)
    ]  # fmt: skip
    assert rows[0]["context"] == "whole" and rows[0]["lead_mrr"] == 0 and len({row["n"] for row in rows}) == 1
    for row in rows:
        assert row["lead_cosine"] == pytest.approx(rows[0]["cosine"] - row["cosine"], abs=1e-9)
    assert (tmp_path / "context-curve.png").stat().st_size > 1000
    for lengths, message in (("0", "at least 1"), ("5000", "looks back on"), ("x", "whole numbers")):
        outcome = run_cli(*asked, "--context-curve", lengths)
        assert outcome.code == 2 and message in outcome.stderr


def test_a_model_with_a_sampling_head_is_judged_by_draws_too(run_cli: Callable, held_out_corpus: Path, tmp_path: Path) -> None:
    encoder = load_encoder("stub")
    shape = ModelSettings(context=8, hidden=16, layers=1, heads=2, sampler="energy", sampler_width=16, sampler_blocks=1)
    torch.manual_seed(0)
    LatentTransformer(LatentConfig(dim=encoder.dim, model=shape, encoder=encoder.fingerprint())).save_pretrained(tmp_path / "model")
    asked = ["evaluate", tmp_path / "model", "--corpus", held_out_corpus, "--resamples", 0, "--shuffled-positions", 0, "--rollout", 3]
    found = {}
    for temperature in ("0", "1"):
        outcome = run_cli(*asked, "--rollout-read", 3, "--temperature", temperature, "--json", tmp_path / "scores.json")
        assert outcome.code == 0, outcome.stderr
        results = json.loads((tmp_path / "scores.json").read_text())["results"]
        found[temperature] = {row["predictor"]: row["cosine"] for row in results["rows"]}
        assert {row["way"] for row in results["drift"]} == {"model", evaluation.SAMPLED, "the document itself", "last vector kept"}
    assert found["0"]["model"] == found["1"]["model"] and found["0"][evaluation.SAMPLED] != found["1"][evaluation.SAMPLED]
    outcome = run_cli(*asked, "--temperature", "-1")
    assert outcome.code == 2 and "--temperature -1" in outcome.stderr
    outcome = run_cli(*asked, "--guidance", "2")
    assert outcome.code == 2 and "energy head" in outcome.stderr


def test_options_of_drawing_are_refused_without_a_head(run_cli: Callable, model_folder: Path, held_out_corpus: Path) -> None:
    outcome = run_cli("evaluate", model_folder, "--corpus", held_out_corpus, "--temperature", "0.5")
    assert outcome.code == 2 and "--temperature" in outcome.stderr and "no sampling head" in outcome.stderr


def test_draws_differ_between_documents_and_follow_sections() -> None:
    shape = ModelSettings(
        context=8, hidden=16, layers=1, heads=2, positions="rope-2d", sampler="energy", sampler_width=16, sampler_blocks=1
    )
    torch.manual_seed(0)
    model = LatentTransformer(LatentConfig(dim=12, model=shape, point=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    z_SD = np.random.default_rng(0).standard_normal((6, 12)).astype(np.float32)

    def drawn(z_SD: np.ndarray, section_S: np.ndarray) -> np.ndarray:
        return evaluation.predictor_of(model, lambda _: section_S, VectorSampling())(z_SD)

    one = drawn(z_SD, np.zeros(6, dtype=np.int64))
    np.testing.assert_array_equal(one, drawn(z_SD, np.zeros(6, dtype=np.int64)))
    assert np.abs(one[-1] - drawn(z_SD, np.arange(6) // 2)[-1]).max() > 1e-4
    # With another sentence behind, it is another document: noise of its own, even where what was read is the same.
    assert np.abs(one[0] - drawn(np.concatenate([z_SD, z_SD[:1]]), np.zeros(7, dtype=np.int64))[0]).max() > 1e-4


def test_without_training_corpus_nothing_is_fitted(run_cli: Callable, model_folder: Path, held_out_corpus: Path, tmp_path: Path) -> None:
    where = tmp_path / "scores.json"
    outcome = run_cli("evaluate", model_folder, "--corpus", held_out_corpus, "--json", where, "--resamples", 0, "--limit-documents", 3)
    assert outcome.code == 0, outcome.stderr
    predictors = [row["predictor"] for row in json.loads(where.read_text())["results"]["rows"]]
    assert "does not say which documents it was trained on" in outcome.stderr
    assert "ridge" not in predictors and {"exponential mean 0.5", "exponential mean 0.7", "exponential mean 0.9"} < set(predictors)


def test_the_training_corpus_is_judged_on_its_held_out_documents(model_folder: Path, training_corpus: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(training_corpus)
    write_json(tmp_path / "run.json", {"inputs": {"corpus": corpus.fingerprint}, "settings": {"data": {"held_out_fraction": 0.3}}})
    judged = choose_documents(tmp_path, LatentTransformer.from_pretrained(model_folder), corpus, None, limit=None)
    train, held_out = split_documents(corpus.doc_ids, 0.3)
    assert judged.train is not None
    assert list(judged.held_out.numbers) == held_out.tolist() and list(judged.train.numbers) == train.tolist()


def test_a_grown_corpus_is_judged_without_what_the_run_was_trained_on(
    training_corpus: Path, tmp_path: Path, write_made_up: Callable
) -> None:
    raw = {"model": {"context": 8, "hidden": 16, "layers": 1, "heads": 2}, "data": {"held_out_fraction": 0.3, "batch_sentences": 64}}
    settings = settings_from(PretrainSettings, raw, origin="test")
    task = Pretraining.on_corpus(training_corpus, settings, seed=0, device=torch.device("cpu"))
    (tmp_path / "final").mkdir()
    task.save_final(tmp_path / "final")
    corpus = Corpus.open(training_corpus)
    train, held_out = split_documents(corpus.doc_ids, 0.3)
    sums = corpus.documents["text_sha256"].to_pylist()
    assert read_trained_on(tmp_path) == read_trained_on(tmp_path / "final") == {sums[doc][:16] for doc in train}
    # Other ids, twice the documents: neither ids nor the corpus' fingerprint tell what was trained on.
    grown = Corpus.open(write_made_up(range(48), 1000))
    judged = choose_documents(tmp_path, task.model, grown, None, limit=None)
    assert list(judged.held_out.numbers) == [*held_out, *range(24, 48)]
    assert judged.train is not None and list(judged.train.numbers) == train.tolist()
    assert any(f"{len(train)} documents" in note and "left out" in note for note in judged.notes)


def test_a_copy_of_a_training_document_is_not_judged_even_where_it_is_held_out(
    model_folder: Path, tmp_path: Path, write_made_up: Callable
) -> None:
    corpus = Corpus.open(write_made_up([*range(20)] * 2, 0))
    write_json(tmp_path / "run.json", {"inputs": {"corpus": corpus.fingerprint}, "settings": {"data": {"held_out_fraction": 0.3}}})
    judged = choose_documents(tmp_path, LatentTransformer.from_pretrained(model_folder), corpus, None, limit=None)
    train, held_out = (set((numbers % 20).tolist()) for numbers in split_documents(corpus.doc_ids, 0.3))
    assert train & held_out and {doc % 20 for doc in judged.held_out.numbers} == held_out - train


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--minimum-context", 500], "--minimum-context 500"), (["--limit-documents", 0], "--limit-documents 0"), (["--resamples", -1], "-1")],
)
def test_senseless_options_are_refused(
    run_cli: Callable, model_folder: Path, held_out_corpus: Path, options: list[object], said: str
) -> None:
    outcome = run_cli("evaluate", model_folder, "--corpus", held_out_corpus, *options)
    assert outcome.code == 2 and said in outcome.stderr and "Traceback" not in outcome.stderr


def test_the_trained_documents_are_no_test(run_cli: Callable, model_folder: Path, training_corpus: Path) -> None:
    outcome = run_cli("evaluate", model_folder, "--corpus", training_corpus, "--train-corpus", training_corpus)
    assert outcome.code == 2 and "has not seen" in outcome.stderr


def test_another_encoders_corpus_is_refused(run_cli: Callable, model_folder: Path, held_out_corpus: Path, tmp_path: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    config["encoder"]["sha256"] = "0" * 64
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    outcome = run_cli("evaluate", tmp_path, "--corpus", held_out_corpus)
    assert outcome.code == 2 and outcome.stderr.count("[") >= 2
