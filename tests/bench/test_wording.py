"""What predicted vectors say: places before whole sentences, controls beside the model, and information that is really there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.bench import wording
from lsm.bench.judged import Documents
from lsm.bench.text_metrics import rouge_l
from lsm.corpus.reader import Corpus
from lsm.lm.frozen import FrozenLM


def test_places_have_context_and_truth_of_their_document(held_out_corpus: Path) -> None:
    documents = Documents(Corpus.open(held_out_corpus), [1, 3, 4])
    places = wording.choose_places(documents, 7, minimum_context=3, seed=0)
    assert len(places.truth) == 7 and set(places.document_N) <= {0, 1, 2}
    for g, s, context, truth in zip(places.document_N, places.position_N, places.context, places.truth, strict=True):
        texts = documents.corpus.texts(int(documents.numbers[g]))
        assert truth == texts[s + 1] and context == texts[max(0, s - 9) : s + 1] and s >= 2
    again = wording.choose_places(documents, 7, minimum_context=3, seed=0)
    assert again.truth == places.truth and wording.choose_places(documents, 7, minimum_context=3, seed=1).truth != places.truth


def test_information_is_what_the_context_tells() -> None:
    lm = FrozenLM.load("smollm2-135m-instruct")
    context = ["The old lighthouse keeper lived alone on the island.", "Every evening he climbed the stairs to light the lamp."]
    texts = ["One night the lighthouse lamp would not light.", "The stock market fell by three percent on Tuesday.", " "]
    ((fitting, foreign, nothing),) = wording.mutual_information(lm, [context], [texts])
    assert fitting > 0.3 and fitting > foreign + 0.3 and nothing == 0
    # Together and by the cache as each alone in one pass.
    ids_BT, mask_BT = lm.tokenize([f" {texts[0]}"])
    before = lm.tokens.encode([" ".join(context), "\n\n"])
    nats = [float(lm.prefix_loss(lm.embed(torch.tensor([read])), ids_BT, mask_BT)[0]) for read in before]
    assert fitting == pytest.approx(nats[1] - nats[0], abs=1e-4 if lm.dtype == torch.float32 else 0.03)


def test_rouge_l_known_values() -> None:
    assert rouge_l("The cat sat.", "the cat sat") == 1 and rouge_l("a b c d", "a c x") == pytest.approx(4 / 7) and rouge_l("", "a") == 0


def test_evaluate_words_and_judges(
    run_cli: Callable, tmp_path: Path, model_folder: Path, held_out_corpus: Path, adapter_folder: Path
) -> None:
    where = tmp_path / "scores.json"
    outcome = run_cli(
        "evaluate", model_folder, "--corpus", held_out_corpus, "--wording", 5, "--wording-lm", "stub", "--adapter", adapter_folder,
        "--resamples", 20, "--shuffled-positions", 0, "--json", where,
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    found = json.loads(where.read_text())["results"]["wording"]
    rows = {row["predictor"]: row for row in found["rows"]}
    assert set(rows) == {"model", "exponential mean 0.5", wording.TRUE_VECTOR, wording.TRUTH, wording.ELSEWHERE}
    assert rows[wording.TRUTH]["rouge_l"] == 1 and rows[wording.TRUTH]["cosine"] == pytest.approx(1, abs=1e-5)
    assert rows[wording.ELSEWHERE]["rouge_l"] < 1
    # An untrained model says what its anchor says.
    assert rows["model"]["rouge_l"] == pytest.approx(rows["exponential mean 0.5"]["rouge_l"])
    assert found["judge"] == "stub" and found["judge_wrote"] and len(found["examples"]) == 5
    assert "judged by the LM that writes them" in outcome.stderr and "nats a token" in outcome.stdout
    assert all(np.isfinite(row["mutual_information"]) for row in found["rows"])
    assert rows["model"]["l2_round_trip_gap"] == pytest.approx(rows["model"]["l2"] - rows["model"]["l2_round_trip"], abs=1e-6)
    assert "l2" not in rows[wording.TRUTH] and rows[wording.TRUE_VECTOR]["l2"] == pytest.approx(0, abs=2e-3)
    for row in (rows["model"], rows[wording.TRUE_VECTOR]):  # the mean of √(2 − 2cos) is at most that of the mean cosine
        assert 0 < row["l2_round_trip"] <= (2 - 2 * row["cosine"]) ** 0.5 + 1e-6
