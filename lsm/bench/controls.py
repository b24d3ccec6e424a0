"""The untrained predictors that every latent transformer must beat; what has a constant gets it from training documents.

Letters: S sentences of a document, D vector width, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lsm.bench.next_sentence import Predictor, measure

PredictRows = Callable[..., np.ndarray]
"""z_BSD → predicted_BSD, causal; where sections are known, z_BSD and section_BS → predicted_BSD."""
Sections = Callable[[np.ndarray], np.ndarray]
"""Document z_SD → the section number of each of its sentences."""
DECAYS = (0.5, 0.6, 0.7, 0.8, 0.9)
_RIDGE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
_TUNING_SENTENCES = 4000
_RIDGE_SENTENCES = 200_000


def last_vector(z_SD: np.ndarray) -> np.ndarray:
    """The sentence just read, copied."""
    return z_SD


def running_mean(z_SD: np.ndarray) -> np.ndarray:
    """Mean of all sentences read."""
    return np.cumsum(z_SD, axis=0, dtype=np.float64) / np.arange(1, len(z_SD) + 1)[:, None]


def exponential_mean(decay: float) -> Predictor:
    """Mean of the sentences read with weights decayⁿ for the one n sentences back."""

    def predict(z_SD: np.ndarray) -> np.ndarray:
        mean_SD = np.empty(z_SD.shape, dtype=np.float64)
        total_D, weight = np.zeros(z_SD.shape[1]), 0.0
        for s, z_D in enumerate(z_SD):
            total_D, weight = decay * total_D + z_D, decay * weight + 1
            mean_SD[s] = total_D / weight
        return mean_SD

    return predict


def constant(vector_D: np.ndarray) -> Predictor:
    """The same vector always (the corpus mean: what a collapsed model predicts)."""
    return lambda z_SD: np.broadcast_to(vector_D, z_SD.shape)


@dataclass
class RidgeMoments:
    """What ridge regression from (last vector, exponential mean, running mean, 1) to the next vector needs to know of documents."""

    gram_FF: np.ndarray
    cross_FD: np.ndarray

    @classmethod
    def of(cls, documents: Sequence[np.ndarray]) -> RidgeMoments:
        """Sums over documents [S, D], one document in memory at a time."""
        width = documents[0].shape[1]
        moments = cls(np.zeros((3 * width + 1, 3 * width + 1)), np.zeros((3 * width + 1, width)))
        for z_SD in documents:
            z_SD = np.asarray(z_SD, dtype=np.float32)
            features_SF = _features(z_SD)[:-1]
            moments.gram_FF += features_SF.T @ features_SF
            moments.cross_FD += features_SF.T @ z_SD[1:]
        return moments

    def __add__(self, other: RidgeMoments) -> RidgeMoments:
        return RidgeMoments(self.gram_FF + other.gram_FF, self.cross_FD + other.cross_FD)

    def predictor(self, penalty: float) -> Predictor:
        """The fitted map (Hoerl & Kennard 1970); `penalty` counts in the Gram matrix's mean diagonal, the same for every encoder."""
        regularised_FF = self.gram_FF.copy()
        regularised_FF[np.diag_indices_from(regularised_FF)] += max(penalty * np.trace(self.gram_FF) / len(self.gram_FF), 1e-12)
        weight_FD = np.linalg.solve(regularised_FF, self.cross_FD).astype(np.float32)
        return lambda z_SD: _features(z_SD) @ weight_FD


def other_documents_context(
    predictor: Callable[..., np.ndarray], documents: Sequence[np.ndarray], *, sections: Sections | None = None
) -> Predictor:
    """`predictor` reading the next one of `documents` instead (repeated when shorter): what it knows without this context.

    Asked about `documents` only, of which at least two must differ. The sections stay those of the document asked about.
    """
    keys = [document_key(z_SD) for z_SD in documents]
    assert len(set(keys)) > 1, "one document has no other"

    def predict(z_SD: np.ndarray) -> np.ndarray:
        own = keys.index(document_key(z_SD))
        other = next(k for k in (np.arange(own + 1, own + len(keys)) % len(keys)) if keys[k] != keys[own])
        other_SD = np.asarray(documents[other], dtype=np.float32)
        repeats = -(-len(z_SD) // len(other_SD))
        return predictor(np.tile(other_SD, (repeats, 1))[: len(z_SD)], *(() if sections is None else (sections(z_SD),)))

    return predict


Places = Callable[[np.ndarray], np.ndarray]
"""Document z_SD → the places s to try in it: the same at every call."""


def random_places(positions: int, minimum_context: int, seed: int) -> Places:
    """`positions` of each document's places, drawn by the document."""

    def places(z_SD: np.ndarray) -> np.ndarray:
        every = np.arange(minimum_context - 1, len(z_SD) - 1)
        return np.random.default_rng([seed, document_key(z_SD)]).choice(every, size=min(positions, len(every)), replace=False)

    return places


def places_of(documents: Sequence[np.ndarray], document_Q: np.ndarray, position_Q: np.ndarray) -> Places:
    """The places of some queries on `documents`."""
    keys = [document_key(z_SD) for z_SD in documents]
    places: dict[int, list[int]] = {}
    for g, s in zip(document_Q.tolist(), position_Q.tolist(), strict=True):
        places.setdefault(keys[g], []).append(s)
    return lambda z_SD: np.unique(places.get(document_key(z_SD), np.zeros(0, np.int64))).astype(np.int64)


def sections_of(documents: Sequence[np.ndarray], sections: Sequence[np.ndarray]) -> Sections:
    """The sections of `documents`, each [S]."""
    by_key = {document_key(z_SD): section_S for z_SD, section_S in zip(documents, sections, strict=True)}
    return lambda z_SD: by_key[document_key(z_SD)]


def shuffled_order(
    predict_rows: PredictRows, *, context: int, places: Places, seed: int, intact: int = 0, sections: Sections | None = None
) -> Predictor:
    """A predictor over rows (causal) reading the last `context` sentences, all but the last `intact` of them in random order; sections stay
    where they are."""

    def arranged(start: int, stop: int, generator: np.random.Generator) -> np.ndarray:
        edge = max(start, stop - intact)
        return np.concatenate([generator.permutation(np.arange(start, edge)), np.arange(edge, stop)])

    return _rearranged(predict_rows, arranged, context=context, places=places, seed=seed, sections=sections)


def truncated(predict_rows: PredictRows, *, context: int, places: Places, sections: Sections | None = None) -> Predictor:
    """A predictor over rows (causal) that reads the last `context` sentences and nothing before."""
    return _rearranged(
        predict_rows, lambda start, stop, _: np.arange(start, stop), context=context, places=places, seed=0, sections=sections
    )


def _rearranged(
    predict_rows: PredictRows,
    arranged: Callable[[int, int, np.random.Generator], np.ndarray],
    *,
    context: int,
    places: Places,
    seed: int,
    sections: Sections | None,
) -> Predictor:
    """Every place needs a row of its own, so only some are tried."""
    generator = np.random.default_rng(seed)

    def predict(z_SD: np.ndarray) -> np.ndarray:
        predicted_SD = np.full(z_SD.shape, np.nan, dtype=np.float32)
        chosen = places(z_SD)
        if not len(chosen):
            return predicted_SD
        lengths = np.minimum(chosen + 1, context)
        rows_BSD = np.zeros((len(chosen), lengths.max(), z_SD.shape[1]), dtype=np.float32)
        section_S = np.zeros(len(z_SD), dtype=np.int64) if sections is None else sections(z_SD)
        section_BS = np.zeros(rows_BSD.shape[:2], dtype=np.int64)
        for row, (s, length) in enumerate(zip(chosen, lengths, strict=True)):
            rows_BSD[row, :length] = z_SD[arranged(s + 1 - length, s + 1, generator)]
            section_BS[row, :length] = section_S[s + 1 - length : s + 1]
        given = (rows_BSD,) if sections is None else (rows_BSD, section_BS)
        predicted_SD[chosen] = predict_rows(*given)[np.arange(len(chosen)), lengths - 1]
        return predicted_SD

    return predict


def within(predictor: Predictor, dims: slice) -> Predictor:
    """A predictor of some dims that reads only these, as one of whole vectors: zeros elsewhere."""

    def predict(z_SD: np.ndarray) -> np.ndarray:
        predicted_SD = np.zeros(z_SD.shape, dtype=np.float32)
        predicted_SD[:, dims] = predictor(z_SD[:, dims])
        return predicted_SD

    return predict


def untuned_controls() -> dict[str, Predictor]:
    """The controls that need no training documents; every decay is shown, as none may be chosen on held-out documents."""
    means = {f"exponential mean {decay}": exponential_mean(decay) for decay in DECAYS}
    return {"last vector": last_vector, "running mean": running_mean} | means


def fit_controls(
    train: Sequence[np.ndarray],
    train_parts: Sequence[np.ndarray],
    *,
    minimum_context: int = 3,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Predictor]:
    """All controls; decay and ridge penalty are chosen by mean reciprocal rank on training documents, never on held-out ones.

    The ridge penalty is judged on training documents kept out of its fit; the map is then fitted on all of them (up to 200,000 sentences).
    """
    tuning = _tuning_documents(train, minimum_context)
    rest = _first_sentences([z_SD for k, z_SD in enumerate(train) if k not in set(tuning)], _RIDGE_SENTENCES)
    if not tuning or not rest:
        note("too few training documents to choose a decay or fit a ridge regression on")
        return untuned_controls() | {"corpus mean": constant(_mean(train))}
    tune = [train[k] for k in tuning], [train_parts[k] for k in tuning]
    decay = _best({decay: exponential_mean(decay) for decay in DECAYS}, *tune, minimum_context)
    note(f"exponential mean: decay {decay} chosen on {len(tuning)} training documents")
    moments = RidgeMoments.of(rest)
    penalty = _best({penalty: moments.predictor(penalty) for penalty in _RIDGE_PENALTIES}, *tune, minimum_context)
    note(f"ridge: penalty {penalty} chosen on them, fitted on {sum(map(len, rest)) + sum(map(len, tune[0])):,} sentences")
    return {
        "last vector": last_vector,
        "running mean": running_mean,
        f"exponential mean {decay}": exponential_mean(decay),
        "corpus mean": constant(_mean(train)),
        "ridge": (moments + RidgeMoments.of(tune[0])).predictor(penalty),
    }


def _mean(documents: Sequence[np.ndarray]) -> np.ndarray:
    total_D = sum(np.asarray(z_SD, dtype=np.float32).sum(axis=0, dtype=np.float64) for z_SD in documents)
    return total_D / sum(map(len, documents))


def _first_sentences(documents: Sequence[np.ndarray], limit: int) -> list[np.ndarray]:
    """Documents from the front with two sentences or more, until `limit` sentences are reached."""
    taken, sentences = [], 0
    for z_SD in documents:
        if sentences >= limit:
            break
        if len(z_SD) > 1:
            taken.append(z_SD)
            sentences += len(z_SD)
    return taken


def _tuning_documents(train: Sequence[np.ndarray], minimum_context: int) -> list[int]:
    """Every k-th long enough document, up to a few thousand sentences and at most a third of all."""
    long_enough = [k for k, z_SD in enumerate(train) if len(z_SD) > minimum_context + 1]
    chosen, sentences = [], 0
    for k in long_enough[::3]:
        if sentences >= _TUNING_SENTENCES:
            break
        chosen.append(k)
        sentences += len(train[k])
    return chosen


def _best(predictors: dict[float, Predictor], documents: Sequence[np.ndarray], parts: Sequence[np.ndarray], minimum_context: int) -> float:
    board = measure(documents, parts, {str(value): predictor for value, predictor in predictors.items()}, minimum_context=minimum_context)
    return max(predictors, key=lambda value: float(np.nanmean(1 / board.outcomes[str(value)]["rank"])))


def _features(z_SD: np.ndarray) -> np.ndarray:
    ones_S1 = np.ones((len(z_SD), 1))
    return np.concatenate((z_SD, exponential_mean(0.7)(z_SD), running_mean(z_SD), ones_S1), axis=1).astype(np.float32)


def document_key(z_SD: np.ndarray) -> int:
    """A number that stands for a document's vectors."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(z_SD, dtype=np.float32).tobytes(), digest_size=8).digest(), "little")
