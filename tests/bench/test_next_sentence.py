"""Known ranks, the exclusions of the protocol, ties, and intervals."""

from __future__ import annotations

import numpy as np
import pytest

from lsm.bench import intervals
from lsm.bench.controls import (
    exponential_mean,
    fit_controls,
    last_vector,
    other_documents_context,
    places_of,
    random_places,
    running_mean,
    shuffled_order,
    truncated,
    untuned_controls,
)
from lsm.bench.next_sentence import make_queries, measure, score_predictors


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_documents(n: int, dim: int = 16, seed: int = 0, longest: int = 20) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    documents, parts = [], []
    for _ in range(n):
        length = int(generator.integers(6, longest))
        drift = np.cumsum(generator.standard_normal((length, dim)) * 0.5, axis=0) + generator.standard_normal(dim) * 2
        documents.append(unit(drift + generator.standard_normal((length, dim)) * 0.3))
        part = (generator.random(length) < 0.2).astype(np.int64)
        part[0] = 0
        parts.append(part)
    return documents, parts


def oracle(z_SD: np.ndarray) -> np.ndarray:
    return np.concatenate([z_SD[1:], z_SD[-1:]])


def plain_ranks(documents: list[np.ndarray], parts: list[np.ndarray], predictor, minimum_context: int) -> tuple[list[float], list[float]]:
    """The protocol written down once more, query by query."""
    ranks, document_ranks = [], []
    for g, z_SD in enumerate(documents):
        predicted = unit(np.asarray(predictor(z_SD), dtype=np.float32))
        for s in range(minimum_context - 1, len(z_SD) - 1):
            if parts[g][s + 1] > 0:
                continue
            scores, own = [], []
            for h, other in enumerate(documents):
                for t in range(len(other)):
                    if parts[h][t] > 0 or (h == g and t <= s) or (h == g and t == s + 1):
                        continue
                    score = float(predicted[s] @ other[t])
                    scores.append(score)
                    if h == g:
                        own.append(score)
            truth = float(predicted[s] @ z_SD[s + 1])
            ranks.append(1 + sum(x > truth for x in scores))
            document_ranks.append(1 + sum(x > truth for x in own) if own else float("nan"))
    return ranks, document_ranks


@pytest.mark.parametrize("predictor", [last_vector, running_mean, exponential_mean(0.7)])
def test_ranks_equal_the_plain_ones(predictor) -> None:
    documents, parts = random_documents(7)
    outcome = measure(documents, parts, {"it": predictor}, minimum_context=3).outcomes["it"]
    ranks, document_ranks = plain_ranks(documents, parts, predictor, 3)
    np.testing.assert_array_equal(outcome["rank"], ranks)
    np.testing.assert_array_equal(outcome["document_rank"], document_ranks)


@pytest.mark.parametrize("predictor", [last_vector, running_mean])
def test_contrastive_accuracy_equals_the_plain_one(predictor) -> None:
    documents, parts = random_documents(6, seed=3)
    outcome = measure(documents, parts, {"it": predictor}, minimum_context=3).outcomes["it"]
    whole = [(h, t, z_SD[t]) for h, z_SD in enumerate(documents) for t in range(len(z_SD)) if parts[h][t] == 0]
    expected, expected_own = [], []
    for g, z_SD in enumerate(documents):
        predicted = unit(np.asarray(predictor(z_SD), dtype=np.float32))
        own = [t for h, t, _ in whole if h == g]
        for s in range(2, len(z_SD) - 1):
            if parts[g][s + 1] > 0:
                continue
            place = own.index(s + 1)
            left_out = {(g, t) for t in own[max(0, place - 1) : place + 2]}
            truth = np.linalg.norm(predicted[s] - z_SD[s + 1])
            further = {(h, t): np.linalg.norm(predicted[s] - z) > truth for h, t, z in whole if (h, t) not in left_out}
            expected.append(np.mean(list(further.values())))
            expected_own.append(np.mean([is_further for (h, _), is_further in further.items() if h == g]))
    np.testing.assert_allclose(outcome["document_contrastive_accuracy"], expected_own, atol=1e-9)
    np.testing.assert_allclose(outcome["contrastive_accuracy"], expected, atol=1e-9)


def test_chunks_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, parts = random_documents(5)
    whole = measure(documents, parts, {"it": last_vector}).outcomes["it"]
    monkeypatch.setattr("lsm.bench.next_sentence._CHUNK_ELEMENTS", 150)
    for quantity, values in measure(documents, parts, {"it": last_vector}).outcomes["it"].items():
        np.testing.assert_allclose(values, whole[quantity], atol=1e-6)


def test_an_oracle_is_first_everywhere() -> None:
    documents, parts = random_documents(5)
    (row,) = score_predictors(documents, parts, {"oracle": oracle}, resamples=50)
    assert row["recall_at_1"] == row["mrr"] == row["document_recall_at_1"] == row["median_rank"] == 1
    assert row["cosine"] == pytest.approx(1, abs=1e-5)
    assert row["l2_gap"] == pytest.approx(0, abs=2e-3)
    assert row["intervals"]["recall_at_1"] == [1, 1]


def test_a_constant_prediction_is_dead_and_at_chance() -> None:
    documents, parts = random_documents(30, dim=32)
    (row,) = score_predictors(documents, parts, {"zero": lambda z: np.zeros_like(z)}, resamples=0)
    # All candidates tie: everyone gets the middle rank.
    assert row["recall_at_1"] == 0 and row["median_rank"] == pytest.approx(row["n_candidates"] / 2, rel=0.1)
    assert row["contrastive_accuracy"] == 0.5
    (row,) = score_predictors(documents, parts, {"constant": lambda z: np.ones_like(z)}, resamples=0)
    assert row["mean_pairwise_cosine"] == pytest.approx(1) and row["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert row["recall_at_10"] < 0.2


def test_equal_sentences_share_their_rank() -> None:
    same = unit(np.eye(4)[[0, 1, 2, 3, 3, 3]])
    outcome = measure([same], [np.zeros(6)], {"oracle": oracle}, minimum_context=3).outcomes["oracle"]
    # After three sentences three equal ones remain: ranks 1, 2, 3 shared.
    np.testing.assert_array_equal(outcome["rank"], [2, 1.5, 1])


def test_later_pieces_are_neither_targets_nor_candidates() -> None:
    documents, parts = random_documents(6)
    queries = make_queries(documents, parts, minimum_context=3)
    assert len(queries.candidates_CD) == sum(int((part == 0).sum()) for part in parts)
    for g, s in zip(queries.document_Q, queries.position_Q, strict=True):
        assert parts[g][s + 1] == 0 and s + 1 >= 3
    truth_QD = np.stack([documents[g][s + 1] for g, s in zip(queries.document_Q, queries.position_Q, strict=True)])
    np.testing.assert_allclose(queries.candidates_CD[queries.target_Q].numpy(), truth_QD, atol=1e-6)


def test_float16_vectors_are_read() -> None:
    documents, parts = random_documents(4)
    exact = score_predictors(documents, parts, {"it": last_vector}, resamples=0)[0]
    halved = score_predictors([z.astype(np.float16) for z in documents], parts, {"it": last_vector}, resamples=0)[0]
    assert halved["cosine"] == pytest.approx(exact["cosine"], abs=1e-3)


def test_paired_difference_is_tighter_than_the_rows() -> None:
    documents, parts = random_documents(25)
    board = measure(documents, parts, {"a": exponential_mean(0.5), "b": exponential_mean(0.55)})
    rows = {row["predictor"]: row for row in board.rows(resamples=300)}
    difference = board.difference("a", "b", resamples=300)["cosine"]
    assert difference.value == pytest.approx(rows["a"]["cosine"] - rows["b"]["cosine"])
    low, high = rows["a"]["intervals"]["cosine"]
    assert difference.high - difference.low < (high - low) / 3
    assert board.difference("a", "a", resamples=20)["mrr"] == intervals.Estimate(0, 0, 0)


def test_shuffled_order_asks_few_places_and_pairs_with_the_rest() -> None:
    documents, parts = random_documents(6)
    shuffled = shuffled_order(last_vector, context=4, places=random_places(2, 3, 0), seed=0)
    board = measure(documents, parts, {"model": last_vector, "shuffled": shuffled})
    model, control = board.rows(resamples=10)
    assert 0 < control["n"] <= 12 < model["n"]
    assert np.isfinite(board.difference("model", "shuffled", resamples=10)["cosine"].value)


def test_truncated_and_shuffled_contexts_read_what_they_say() -> None:
    z_SD = np.arange(20, dtype=np.float32)[:, None] + np.ones(3, dtype=np.float32)
    places = random_places(4, 8, 1)
    weighed = np.float32([0.1, 1, 10, 100])

    def predict_rows(z_BSD: np.ndarray) -> np.ndarray:
        """The sum of all that was read, and of the last three by their places."""
        total = np.cumsum(z_BSD[..., :1], axis=1)
        last = sum(w * np.pad(z_BSD[..., 1:2], ((0, 0), (k, 0), (0, 0)))[:, : z_BSD.shape[1]] for k, w in enumerate(weighed[:3]))
        return np.concatenate([total, last, last], axis=-1)

    ways = [
        truncated(predict_rows, context=20, places=places),
        truncated(predict_rows, context=3, places=places),
        shuffled_order(predict_rows, context=20, intact=3, places=places, seed=1),
        shuffled_order(predict_rows, context=20, intact=2, places=places, seed=1),
    ]
    other_SD = np.random.default_rng(0).standard_normal((15, 3)).astype(np.float32)
    answered = [~np.isnan(way(other_SD)[:, 0]) for way in ways]
    assert answered[0].sum() == 4 and all((others == answered[0]).all() for others in answered)
    whole, short, intact, loose = (way(z_SD) for way in ways)
    asked = ~np.isnan(whole[:, 0])
    assert asked.sum() == 4 and all((~np.isnan(other[:, 0]) == asked).all() for other in (short, intact, loose))
    places = np.flatnonzero(asked)
    np.testing.assert_allclose(whole[asked, 0], [(z_SD[: s + 1, 0]).sum() for s in places], rtol=1e-6)
    np.testing.assert_allclose(short[asked, 0], [z_SD[s - 2 : s + 1, 0].sum() for s in places], rtol=1e-6)
    np.testing.assert_allclose(intact[asked], whole[asked], rtol=1e-6)
    assert (np.abs(loose[asked, 0] - whole[asked, 0]) < 1e-3).all() and (loose[asked, 1] != whole[asked, 1]).any()


def test_only_the_places_of_the_queries_are_tried() -> None:
    documents, parts = random_documents(5)
    queries = make_queries(documents, parts, minimum_context=3)
    some = np.random.default_rng(0).choice(len(queries.position_Q), size=9, replace=False)
    places = places_of(documents, queries.document_Q[some], queries.position_Q[some])
    board = measure(documents, parts, {"whole": last_vector, "some": truncated(last_vector, context=50, places=places)})
    answered = ~np.isnan(board.outcomes["some"]["rank"])
    assert np.array_equal(np.flatnonzero(answered), np.sort(some))
    for quantity, values in board.outcomes["some"].items():
        np.testing.assert_array_equal(values[answered], board.outcomes["whole"][quantity][answered])


def test_running_means_weigh_as_they_say() -> None:
    z_SD = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_allclose(running_mean(z_SD)[-1], z_SD.mean(0))
    np.testing.assert_allclose(exponential_mean(0.5)(z_SD)[-1], (z_SD[2] + 0.5 * z_SD[1] + 0.25 * z_SD[0]) / 1.75)


def test_controls_are_fitted_and_ridge_learns_a_linear_rule() -> None:
    generator = np.random.default_rng(0)
    turn, _ = np.linalg.qr(generator.standard_normal((8, 8)))
    documents = []
    for _ in range(12):
        z = [generator.standard_normal(8)]
        for _ in range(14):
            z.append(turn @ z[-1])
        documents.append(unit(np.stack(z)))
    parts = [np.zeros(15)] * 12
    notes: list[str] = []
    controls = fit_controls(documents, parts, note=notes.append)
    assert {"last vector", "running mean", "corpus mean", "ridge"} < set(controls) and len(notes) == 2
    rows = {row["predictor"]: row for row in score_predictors(documents, parts, controls, resamples=0)}
    assert rows["ridge"]["recall_at_1"] > 0.95 > rows["last vector"]["recall_at_1"]
    assert rows["corpus mean"]["effective_rank"] == pytest.approx(1, abs=1e-3)


def test_no_training_documents_leaves_the_free_controls() -> None:
    assert fit_controls([np.ones((2, 4))], [np.zeros(2)]).keys() == untuned_controls().keys() | {"corpus mean"}


def test_other_documents_context_never_reads_its_own() -> None:
    documents, parts = random_documents(4)
    documents.insert(2, documents[1][:2])  # too short to be asked about
    parts.insert(2, parts[1][:2])
    board = measure(documents, parts, {"other": other_documents_context(oracle, documents), "own": oracle})
    assert np.nanmax(board.outcomes["other"]["cosine"]) < 0.999 < np.nanmin(board.outcomes["own"]["cosine"])


def test_intervals_cover_the_truth_and_widen_with_dependence() -> None:
    generator = np.random.default_rng(1)
    document_N = np.repeat(np.arange(40), 25)
    shared_N = generator.standard_normal(40)[document_N]
    drawn = intervals.draw(40, 500, seed=3)
    dependent = intervals.mean(shared_N, document_N, drawn)
    free = intervals.mean(generator.standard_normal(1000), document_N, drawn)
    assert dependent.low < shared_N.mean() < dependent.high
    assert dependent.high - dependent.low > 2 * (free.high - free.low)
    middle = intervals.median(shared_N, document_N, drawn)
    assert middle.low <= middle.value <= middle.high and middle.value in shared_N


def test_intervals_of_nothing_are_nan() -> None:
    estimate = intervals.mean(np.full(3, np.nan), np.zeros(3, dtype=int), intervals.draw(1, 5, 0))
    assert np.isnan(estimate.value) and np.isnan(estimate.low)
    one = intervals.mean(np.ones(3), np.zeros(3, dtype=int), intervals.draw(1, 0, 0))
    assert one.value == 1 and np.isnan(one.low)
