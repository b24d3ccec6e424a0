"""`lsm roundtrip`: sentences to vectors and back, and what that keeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from lsm.commands.decoder_options import DecoderOptions
from lsm.encode.settings import EncodeSettings

if TYPE_CHECKING:
    from lsm.bench.roundtrip import RoundTrip, Sample
    from lsm.bench.sample import Drawn
    from lsm.commands.roundtrip_codes import CodeRows
    from lsm.commands.roundtrip_learned import LearnedRows
    from lsm.decode.decoders import Decoder
    from lsm.decode.load import DecoderSource
    from lsm.encode.encoder import SentenceEncoder


_DICTIONARY_SENTENCES = 500
"""Other sentences that there must be for a zstd dictionary."""
_PROBED_AT_ONCE = 128
"""Sentences of the negation probe between two lines of progress."""


@dataclass(kw_only=True)
class Options(DecoderOptions):
    """Round trip: text, vector, text."""

    input: Positional[str]
    """File, folder, glob, recipe name or hf:DATASET[:SPLIT] to draw sentences from, or the folder of an encoded corpus."""
    encoder: str | None = None
    """Asset name, hub id or folder of the encoder; default: the corpus's own when INPUT is one, else minilm."""
    decoder: str | None = None
    """Decoders, separated by commas: retrieval, prefix, corrector, inversion, guided, vec2text; default: retrieval, prefix and
    inversion, as far as they have a store and an adapter. none = only the residual codes."""
    residual: Literal["none", "superposition", "learned"] = "none"
    """Residual code to carry beside the semantic vector; superposition gives the words back exactly and is larger than they are; learned
    lays similar sentences close together and gives short ones back."""
    residual_dims: str = "256"
    """Entries of the code, several separated by commas for a curve."""
    learned_code: Path | None = None
    """Folder of a learned code (from train-decoder); default: the shipped one for the encoder."""
    residual_bits: str = "8"
    """Bits of an entry: 8, 6, 4, or several separated by commas."""
    residual_seed: int = 0
    """Seed of the code's signs."""
    residual_noise: float = 0.0
    """Noise that superposition codes leave room for, in root mean squares of their entries, as --noise."""
    prior: str = "none,lm"
    """What the code reader expects of the next token, several separated by commas: none; lm = the frozen LM; semantic = the LM that has
    read the semantic vector through the prefix adapter; previous = the LM that has read the sentence before."""
    retry: bool = True
    """Also read what greedy reading does not certify with wider and wider beams (rows named retry)."""
    noise: float = 0.0
    """Gaussian noise added to each vector before decoding, relative to the vector's length, and to each code, relative to its entries."""
    limit: int = 200
    """Sentences to send; drawn at random, without repeats, by --seed."""
    independent: str = "wordllama"
    """A second encoder that took no part, for cosine_independent; none = leave the column empty."""
    controls: bool = True
    """Also give each generative decoder shuffled vectors and zeros."""
    entropy: bool = False
    """Also count what an arithmetic coder with the frozen LM would need for the text."""
    negation: int = 0
    """Also send so many pairs of sentences of each kind that differ in one "not", number, name or direction (English only)."""
    domain: str | None = None
    """What the rows call the kind of text; default: the name of INPUT."""
    cap_characters: int = EncodeSettings.cap_characters
    """Longer sentences are split at clause boundaries (when INPUT is text)."""
    resamples: int = 1000
    """Bootstrap resamples of documents behind each 95 % interval; 0 = no intervals."""
    show: int = 5
    """Sentences to print with what came back."""
    plots: Path | None = None
    """Folder for bar charts (roundtrip.png, roundtrip-by-length.png)."""


def run(options: Options) -> dict[str, Any]:
    """Draw, encode, decode, score; print tables and examples."""
    from lsm.bench import roundtrip, sample, text_metrics
    from lsm.corpus.reader import Corpus
    from lsm.encode.encoder import load_encoder
    from lsm.progress import Progress, say
    from lsm.provenance import choose_device

    _check(options)
    device, why = choose_device(options.device)
    corpus = Corpus.open(options.input) if sample.is_corpus(options.input) else None
    name = options.encoder or (corpus.encoder["name"] if corpus else "minilm")
    encoder = load_encoder(name, device=options.device)
    if corpus:
        corpus.require_encoder(encoder.fingerprint())
    source = options.source(encoder, device)
    decoders = _decoders(options, source)
    independent = None if options.independent == "none" else load_encoder(options.independent, device=options.device)
    drawn = _draw(options, corpus, encoder)
    say(
        f"round trip of {len(drawn.texts):,} sentences of {drawn.document_N.max() + 1:,} documents (drawn from {drawn.n_pool:,}) "
        f"through {name} and {', '.join(_ways(options, decoders))} ({device}: {why})",
        quiet=options.quiet,
    )
    references_N = _references(options, drawn, device)
    sent = _encode(drawn, encoder, name, options.domain or Path(options.input).stem, references_N)
    read_codes: CodeRows | LearnedRows | None = None
    if options.residual == "superposition":
        from lsm.commands import roundtrip_codes

        read_codes = roundtrip_codes.plan(options, source, drawn.previous, sent.z_ND)
    elif options.residual == "learned":
        from lsm.commands import roundtrip_learned

        read_codes = roundtrip_learned.plan(options, source, encoder, sent.z_ND)
    rows = sum(3 if options.controls and decoder.name != "retrieval" else 1 for decoder in decoders)
    with Progress("decoding", rows + (read_codes.n_rows if read_codes else 0), "rows", quiet=options.quiet) as progress:
        board = roundtrip.Board(
            sent,
            encode=lambda texts: encoder.encode(texts).vectors,
            independent=None if independent is None else lambda texts: independent.encode(texts).vectors,
            noise=options.noise,
            resamples=options.resamples,
            seed=options.seed,
            advance=lambda label: progress.advance(1, label),
        )
        trip = roundtrip.measure(board, decoders, controls=options.controls, seed=options.seed)
        if read_codes:
            read_codes.add_rows(board, seed=options.seed)
    negation = _negation(options, drawn, encoder, decoders, read_codes) if options.negation else []
    signatures = text_metrics.signatures()
    _show(options, sent, trip, signatures)
    if negation:
        from lsm.report import tables

        tables.show(negation, tables.NEGATION, title="Pairs that differ in one word")
    return {
        "rows": trip.rows,
        "by_length": trip.by_length,
        "negation": negation,
        "metrics": signatures,
        "texts": [
            {"text": text} | {label: written[n] for label, written in trip.texts.items()} for n, text in enumerate(sent.texts)
        ],
    }  # fmt: skip


def _check(options: Options) -> None:
    from lsm.errors import UserError

    leasts = {"--limit": (options.limit, 1)} | {f"--{name}": (getattr(options, name), 0) for name in ("resamples", "negation", "show")}
    for name, (value, least) in leasts.items():
        if value < least:
            raise UserError(f"{name} {value}: must be at least {least}")
    if options.noise and options.negation:
        raise UserError("--negation sends its pairs without noise: ask for them in a run of its own, without --noise")
    if not 0 <= options.noise < float("inf"):
        raise UserError(f"--noise {options.noise}: must be 0 or more, in lengths of the vector")


def _ways(options: Options, decoders: list[Decoder]) -> list[str]:
    codes = [f"{options.residual} codes of {options.residual_dims} dims"] if options.residual != "none" else []
    return [decoder.name for decoder in decoders] + codes


def _decoders(options: Options, source: DecoderSource) -> list[Decoder]:
    if options.decoder == "none" and options.residual != "none":
        return []
    if options.decoder is None:
        there = {"retrieval": source.has_store, "prefix": source.has_adapter(), "inversion": True}
        names = [name for name, has_parts in there.items() if has_parts]
    else:
        names = [part.strip() for part in options.decoder.split(",") if part.strip()]
    return source.load(names)


def _draw(options: Options, corpus: Any, encoder: SentenceEncoder) -> Drawn:
    from functools import partial

    from lsm.bench import sample
    from lsm.text.readers import iter_documents
    from lsm.text.segment import segment

    if corpus:
        return sample.draw(sample.corpus_sentences(corpus), options.limit, seed=options.seed)
    cut = partial(segment, cap_characters=options.cap_characters, fits=getattr(encoder, "fits", None))
    documents = (document.text for document in iter_documents([options.input]))
    return sample.draw(sample.segmented(documents, cut), options.limit, seed=options.seed)


def _references(options: Options, drawn: Drawn, device: Any) -> dict[str, Any]:
    """What the drawn texts take under zstd with a dictionary of other sentences, and under the frozen LM."""
    from lsm.bench import byte_references
    from lsm.decode.load import DEFAULT_LM
    from lsm.lm.frozen import FrozenLM

    lm = FrozenLM.load(options.lm or DEFAULT_LM, device=device) if options.entropy else None
    others = drawn.others if len(drawn.others) >= _DICTIONARY_SENTENCES else None
    columns = byte_references.measure(drawn.texts, dictionary_texts=others, lm=lm).columns()
    return {key: columns[key] for key in ("zstd_dictionary_bytes", "lm_entropy_bytes") if columns.get(key) is not None}


def _negation(
    options: Options, drawn: Drawn, encoder: SentenceEncoder, decoders: list[Decoder], codes: CodeRows | LearnedRows | None
) -> list[Any]:
    """Rows of the negation probe: the vectors' own, then each decoder's and each code's."""
    from lsm.bench import negation
    from lsm.progress import Progress

    documents = [*drawn.document_N.tolist(), *drawn.others_document_N.tolist()]
    pairs = negation.pairs([*drawn.texts, *drawn.others], options.seed, options.negation, documents=documents)

    def encode(texts: Any) -> Any:
        return encoder.encode(list(texts)).vectors

    ways = [(decoder.name, lambda texts, it=decoder: it.decode(encode(texts), seed=options.seed)) for decoder in decoders]
    ways = [*ways, *(codes.ways() if codes else [])]
    rows = []
    with Progress("negation probe", 2 * len(pairs) * len(ways), "sentences", quiet=options.quiet) as progress:

        def in_parts(way: Any, texts: Any) -> list[str]:
            back: list[str] = []
            for start in range(0, len(texts), _PROBED_AT_ONCE):
                some = way(texts[start : start + _PROBED_AT_ONCE])
                back += some
                progress.advance(len(some))
            return back

        for label, way in ways:
            found = negation.measure(pairs, encode, partial(in_parts, way), resamples=options.resamples, seed=options.seed)
            rows += [{"label": label, **row} for row in found]
    return rows


def _encode(drawn: Drawn, encoder: SentenceEncoder, name: str, domain: str, references_N: dict[str, Any]) -> Sample:
    import time

    import numpy as np

    from lsm.bench.roundtrip import Sample

    encoder.encode(drawn.texts[:1])  # the first call loads code and weights
    started = time.perf_counter()
    vectors_ND = encoder.encode(drawn.texts).vectors
    seconds = time.perf_counter() - started
    # Decoders get what a corpus would hold: float16.
    stored_ND = vectors_ND.astype(np.float16).astype(np.float32)
    return Sample(drawn.texts, drawn.document_N, stored_ND, encode_seconds=seconds, encoder=name, domain=domain, references_N=references_N)


def _show(options: Options, sent: Sample, trip: RoundTrip, signatures: dict[str, str]) -> None:
    from lsm.report import tables

    n_documents = sent.document_N.max() + 1
    noise = f", noise {options.noise:g}" if options.noise else ""
    tables.show(trip.rows, tables.ROUNDTRIP, title=f"Round trip ({len(sent.texts)} sentences, {n_documents} documents{noise})")
    own = [row for row in trip.by_length if row["vector"] == "own"]
    tables.show(own, tables.ROUNDTRIP_BY_LENGTH, title="By length of the sentence")
    for name, signature in signatures.items():
        print(f"{name}: {signature}")
    labels = [row["label"] for row in trip.rows if row["vector"] == "own"]
    for n in range(min(options.show, len(sent.texts))):
        print(f"\n{'text':<10} {sent.texts[n]}")
        for label in labels:
            print(f"{label:<10} {trip.texts[label][n]}")
    if options.plots:
        from lsm.report.plots import plot_roundtrip, plot_roundtrip_by_length

        options.plots.mkdir(parents=True, exist_ok=True)
        plot_roundtrip(trip.rows, options.plots / "roundtrip.png")
        plot_roundtrip_by_length(trip.by_length, options.plots / "roundtrip-by-length.png")
        print(f"\nplots in {options.plots}")
