"""The round-trip scoreboard: sentences through their vectors and back by each decoder, with controls.

Letters: N sentences, D vector width, R resamples.

Controls of a decoder that makes up text: the same decoder given another sentence's vector (`shuffled`) and no vector (`zero`). What the
nearest sentence of the store gives is the row of the `retrieval` decoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lsm.bench import intervals, text_metrics
from lsm.bench.text_metrics import TextScores

LENGTH_BUCKETS = ((1, 50), (51, 100), (101, 150), (151, 200), (201, None))
"""In characters."""
Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts → vectors float32 [N, D]."""


class DecoderLike(Protocol):
    """What is measured of `lsm.decode.decoders.Decoder`."""

    name: str
    encoder_calls_per_sentence: float

    def decode(self, z_BD: np.ndarray, *, seed: int = 0) -> list[str]:
        """Vectors to sentences."""
        ...


@dataclass(frozen=True)
class Sample:
    """The sentences sent round, their documents and their vectors."""

    texts: list[str]
    document_N: np.ndarray
    """Number of each sentence's document, 0 … G−1: intervals resample documents."""
    z_ND: np.ndarray
    """float32, as the encoder gives them."""
    encode_seconds: float
    """Time to encode the texts; 0 when the vectors were read from a corpus."""
    encoder: str
    domain: str
    bytes_per_value: int = 2
    """Bytes that a vector entry takes where it is stored (float16)."""
    references_N: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the texts take otherwise, by column name (`lsm.bench.byte_references`), [N] each."""

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.document_N) == len(self.z_ND) > 0


@dataclass
class RoundTrip:
    """What came back."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """One row a decoder and kind of input, over all lengths."""
    by_length: list[dict[str, Any]] = field(default_factory=list)
    """The same by length of the true sentence."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """Row label → decoded sentences, in the sample's order."""


@dataclass(frozen=True)
class CodeRead:
    """What the row of a residual code says beside its texts."""

    kind: str
    dims: int
    bits: int
    certified_N: np.ndarray
    """bool [N]."""
    bytes_N: np.ndarray
    """Bytes of each sentence's codes with their headers, [N]."""
    encode_seconds: float = 0.0
    """Time to make all the codes."""


class Board:
    """Scores what came back against the sample, row by row."""

    def __init__(
        self,
        sample: Sample,
        *,
        encode: Encode,
        independent: Encode | None,
        noise: float = 0.0,
        resamples: int = 1000,
        seed: int = 0,
        advance: Callable[[str], None] = lambda label: None,
    ) -> None:
        """Args:
        encode: the encoder that the vectors come from, for `cosine`.
        independent: an encoder that took no part, for `cosine_independent`; None leaves the column empty.
        noise: what the rows say was added before decoding.
        advance: called with the label of each row when it is done.
        """
        self.sample, self.noise, self.result = sample, noise, RoundTrip()
        self._encode, self._independent, self._advance = encode, independent, advance
        self._own_independent_ND = None if independent is None else independent(sample.texts)
        self._drawn_RG = intervals.draw(int(sample.document_N.max()) + 1, resamples, seed)

    def add(
        self,
        decoder: str,
        texts: Sequence[str],
        *,
        vector: str = "own",
        seconds: float | None,
        encoder_calls: float = 0.0,
        code: CodeRead | None = None,
    ) -> None:
        """Score one row.

        Args:
            vector: which input was decoded: own, shuffled or zero.
            seconds: time to decode all of it; None leaves the speed empty.
            encoder_calls: per sentence.
            code: where residual codes were read.
        """
        same_N = np.array([text == own for text, own in zip(texts, self.sample.texts, strict=True)])
        texts = [text.strip() for text in texts]
        assert len(texts) == len(self.sample.texts), f"{decoder} gave {len(texts)} sentences for {len(self.sample.texts)}"
        scores = text_metrics.score_texts(texts, self.sample.texts)
        cosine_N = cosines(encode_written(self._encode, texts), self.sample.z_ND)
        independent_N = None
        if self._independent is not None and self._own_independent_ND is not None:
            independent_N = cosines(encode_written(self._independent, texts), self._own_independent_ND)
        label = decoder if vector == "own" else f"{decoder}, {vector} vector"
        common = {
            "label": label,
            "encoder": self.sample.encoder,
            "decoder": decoder,
            "vector": vector,
            "residual": code.kind if code else "none",
            "residual_dims": code.dims if code else 0,
            "residual_bits": code.bits if code else 0,
            "domain": self.sample.domain,
            "noise": self.noise,
        }
        measured = _Measured(self.sample, scores, cosine_N, independent_N, seconds, encoder_calls, same_N, code)
        self.result.rows.append(common | measured.row(np.ones(len(texts), dtype=bool), self._drawn_RG))
        for name, inside_N in length_buckets(self.sample.texts):
            self.result.by_length.append(common | {"length": name} | measured.row(inside_N, self._drawn_RG))
        self.result.texts[label] = list(texts)
        self._advance(label)


def measure(board: Board, decoders: Sequence[DecoderLike], *, controls: bool = True, seed: int = 0) -> RoundTrip:
    """Decode the board's sample with every decoder and its controls; its noise is added first, relative to each vector's length
    (which is then restored)."""
    given_ND = add_noise(board.sample.z_ND, board.noise, seed)
    for decoder in decoders:
        for vector, z_ND in _inputs(decoder, given_ND, seed, controls=controls):
            started = time.perf_counter()
            texts = decoder.decode(z_ND, seed=seed)
            seconds: float | None = time.perf_counter() - started
            if vector == "zero":  # equal vectors, equal texts: one was decoded, so the time says nothing
                texts, seconds = texts * len(board.sample.texts), None
            board.add(decoder.name, texts, vector=vector, seconds=seconds, encoder_calls=decoder.encoder_calls_per_sentence)
    return board.result


@dataclass(frozen=True)
class _Measured:
    sample: Sample
    scores: TextScores
    cosine_N: np.ndarray
    independent_N: np.ndarray | None
    decode_seconds: float | None
    encoder_calls: float
    same_N: np.ndarray
    """bool: equal to the last white space."""
    code: CodeRead | None

    def row(self, inside_N: np.ndarray, drawn_RG: np.ndarray) -> dict[str, Any]:
        """Means over the sentences `inside_N`; time cannot be split by sentence and is that of the whole sample."""
        document_N = self.sample.document_N[inside_N]
        columns = {
            "exact_match": self.scores.exact_match_N,
            "token_f1": self.scores.token_f1_N,
            "chrf": self.scores.chrf_N,
            "cosine": self.cosine_N,
        }
        if self.independent_N is not None:
            columns["cosine_independent"] = self.independent_N
        estimates = {name: intervals.mean(values[inside_N], document_N, drawn_RG) for name, values in columns.items()}
        counts_GM = np.zeros((drawn_RG.shape[1], self.scores.bleu_counts_NM.shape[1]))
        np.add.at(counts_GM, document_N, self.scores.bleu_counts_NM[inside_N])
        estimates["bleu"] = intervals.statistic(counts_GM, drawn_RG, text_metrics.bleu_of)
        texts = [text for text, inside in zip(self.sample.texts, inside_N, strict=True) if inside]
        encode_seconds = self.sample.encode_seconds + (self.code.encode_seconds if self.code else 0.0)
        seconds = None if self.decode_seconds is None else self.decode_seconds + encode_seconds
        code: dict[str, Any] = {"certified": None, "false_certificates": None}
        code_bytes = 0.0
        if self.code is not None:
            certified_N, wrong_N = self.code.certified_N[inside_N], ~self.same_N[inside_N]
            code = {"certified": float(certified_N.mean()), "false_certificates": int((certified_N & wrong_N).sum())}
            code_bytes = float(self.code.bytes_N[inside_N].mean())
        return {
            "n": len(texts),
            "n_documents": len(np.unique(document_N)),
            "cosine_independent": None,
            **intervals.as_row(estimates),
            **code,
            "bytes_per_sentence": self.sample.z_ND.shape[1] * self.sample.bytes_per_value + code_bytes,
            "residual_bytes": code_bytes,
            "utf8_bytes": float(text_metrics.utf8_bytes(texts).mean()),
            "zstd_bytes": float(text_metrics.zstd_bytes(texts).mean()),
            **{name: float(values_N[inside_N].mean()) for name, values_N in self.sample.references_N.items()},
            "zstd_bytes_together": text_metrics.zstd_bytes_together(texts),
            "encoder_calls": self.encoder_calls,
            "sentences_per_second": None if seconds is None else len(self.cosine_N) / max(seconds, 1e-9),
            "decode_seconds_per_sentence": None if self.decode_seconds is None else self.decode_seconds / len(self.cosine_N),
            "encode_seconds_per_sentence": encode_seconds / len(self.cosine_N),
        }


def add_noise(z_ND: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Vectors with Gaussian noise of `noise` times their length, brought back to their length."""
    if noise == 0:
        return z_ND
    length_N1 = np.linalg.norm(z_ND, axis=1, keepdims=True)
    drawn_ND = np.random.default_rng((seed, 1)).standard_normal(z_ND.shape) / np.sqrt(z_ND.shape[1])
    noisy_ND = z_ND + noise * length_N1 * drawn_ND
    return (noisy_ND * length_N1 / np.maximum(np.linalg.norm(noisy_ND, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def cosines(one_ND: np.ndarray, other_ND: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows; 0 where a row is all zeros."""
    lengths_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return np.where(lengths_N > 0, (one_ND * other_ND).sum(1) / np.maximum(lengths_N, 1e-12), 0.0)


def length_buckets(texts: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """Name and members (bool [N]) of each length bucket that has any."""
    length_N = np.asarray([len(text) for text in texts])
    buckets = []
    for low, high in LENGTH_BUCKETS:
        inside_N = (length_N >= low) & (length_N <= (high or length_N.max()))
        if inside_N.any():
            buckets.append((f"{low}–{high}" if high else f"over {low - 1}", inside_N))
    return buckets


def _inputs(decoder: DecoderLike, given_ND: np.ndarray, seed: int, *, controls: bool) -> list[tuple[str, np.ndarray]]:
    inputs = [("own", given_ND)]
    if controls and decoder.name != "retrieval":
        shift = 1 + seed % max(1, len(given_ND) - 1)  # a rotation leaves no vector in its place
        inputs.append(("shuffled", np.roll(given_ND, shift, axis=0)))
        inputs.append(("zero", np.zeros_like(given_ND[:1])))
    return inputs


def encode_written(encode: Encode, texts: Sequence[str]) -> np.ndarray:
    """Encode what a decoder wrote; an empty text has no meaning and gets the zero vector."""
    written = [n for n, text in enumerate(texts) if text]
    if not written:
        return np.zeros((len(texts), encode(["nothing"]).shape[1]), dtype=np.float32)
    vectors_ND = np.asarray(encode([texts[n] for n in written]), dtype=np.float32)
    out_ND = np.zeros((len(texts), vectors_ND.shape[1]), dtype=np.float32)
    out_ND[written] = vectors_ND
    return out_ND
