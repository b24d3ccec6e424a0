"""`lsm generate`: continue a document: plan sentence vectors, then word them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from lsm.commands.decoder_options import DecoderOptions
from lsm.commands.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from lsm.decode.decoders import Decoder
    from lsm.decode.learned_code_codec import LearnedCodec
    from lsm.encode.encoder import SentenceEncoder
    from lsm.latent.transformer import LatentTransformer


@dataclass(kw_only=True)
class Options(DecoderOptions, SamplingOptions):
    """Continue a document with a latent transformer and a decoder."""

    model: Positional[Path]
    """Run of lsm pretrain, a folder with a saved latent transformer, or the name of a shipped one."""
    prompt: str
    """File with the beginning of the document; - reads standard input."""
    sentences: int = 10
    """Sentences to write."""
    end: bool = False
    """End the document before that, where a plan looks like the last sentence of a stored one (with --index or --corpus)."""
    decoder: Literal["retrieval", "prefix", "inversion", "learned"] = "prefix"
    """retrieval: nearest known sentence; prefix: LM with an adapter; inversion: best of several tries; learned: the learned code's own, for
    runs that plan one."""
    learned_code: Path | None = None
    """Folder of the learned code that the run plans (final/ of its run), when it is not the shipped one."""
    prompt_sentences: int | None = None
    """Read no more than the first so many sentences of the prompt."""
    snap_to: Literal["none", "neighbours", "denoiser", "words"] | None = None
    """What takes each plan's place before it is worded and read on. neighbours: the mean of its nearest stored sentences; denoiser:
    halfway to what the model restores there; words: the encoding of its wording; None: neighbours where sentences are stored,
    but for retrieval."""
    snap: int = 16
    """Stored sentences in the mean of --snap-to neighbours."""
    word_temperature: float = 0.7
    """Draw words at this temperature (prefix); 0 takes the most probable ones, and a long document then repeats itself."""
    context_weight: float = 0.0
    """Let the LM also go by the text so far, with this weight (prefix): each sentence takes twice the time."""
    lift: float = 0.0
    """Lift words that stored sentences near the plan hold, by so many times their log odds (prefix, with --index or --corpus)."""
    forecast: float = 0.0
    """Lift the words that the run forecasts (pretrained with objectives.lexical), by so many times their log odds (prefix)."""
    block: int | None = None
    """Word so many plans at once, so that with --context-weight the next ones read these; None: all at once, after the prompt."""
    re_encode: bool = False
    """Re-encode each written sentence and read it before planning the next."""
    encoder: str | None = None
    """Where the run's encoder lies, when it is not the asset of its name."""
    out: Path | None = None
    """Write the prompt and its continuation to this file."""


def run(options: Options) -> dict[str, Any]:
    """Print the written sentences, one a line."""
    import numpy as np

    from lsm.corpus.format import encoder_line, same_space
    from lsm.decode.decoders import PrefixDecoder
    from lsm.decode.in_context import ContextDecoder
    from lsm.encode.encoder import encoder_info, load_encoder
    from lsm.errors import UserError
    from lsm.files import atomic_write, fingerprint
    from lsm.latent.transformer import LatentTransformer
    from lsm.progress import duration, say
    from lsm.provenance import choose_device
    from lsm.text.segment import segment
    from lsm.write.continuation import continue_document
    from lsm.write.ending import Ending
    from lsm.write.forecast import forecasts_for
    from lsm.write.parts import PlannedCode, SemanticPart, encode_parts, snap_semantic
    from lsm.write.snap import make_snap

    for name, value in (("--sentences", options.sentences), ("--prompt-sentences", options.prompt_sentences), ("--block", options.block)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    if options.snap < 1:
        raise UserError(f"--snap {options.snap}: must be at least 1; for plans as they are give --snap-to none")
    for name, value in (("--context-weight", options.context_weight), ("--lift", options.lift), ("--forecast", options.forecast)):
        if not value >= 0 or (value and options.decoder != "prefix"):
            raise UserError(f"{name} {value}: must be 0 or more, and is for --decoder prefix")
    if not options.word_temperature >= 0 or (options.word_temperature != Options.word_temperature and options.decoder != "prefix"):
        raise UserError(f"--word-temperature {options.word_temperature}: must be 0 or more, and is for --decoder prefix")
    if options.block is not None and options.re_encode:
        raise UserError(
            "--block words plans that were all made before, and --re-encode makes each after the last sentence: give one of them"
        )
    for name, value in (("--lift", options.lift), ("--end", options.end)):
        if value and options.index is None and options.corpus is None:
            raise UserError(f"{name} needs stored sentences: give --index FILE or --corpus DIR")
    device, why = choose_device(options.device)
    model = LatentTransformer.from_pretrained(options.model, device=device)
    sampling = options.sampling(model)
    named = [part.name for part in model.config.parts]
    if named and (options.end or options.snap_to in ("denoiser", "words") or (options.snap_to == "neighbours" and "semantic" not in named)):
        raise UserError(f"--end and --snap-to {options.snap_to or 'denoiser'} know semantic vectors alone, and {options.model} plans codes")
    wanted, parts = model.config.encoder, model.config.parts
    encoder_name = options.encoder or wanted["name"]
    encoder = load_encoder(encoder_name, device=options.device)
    if not same_space(encoder.fingerprint(), wanted):
        found = encoder.fingerprint()
        if wanted.get("context_sentences"):
            raise UserError(
                f"the run {options.model} plans vectors of sentences read in context; no prompt can be encoded so yet, and no decoder "
                "words them; train on a corpus that was encoded without --context-sentences"
            )
        raise UserError(
            f"--encoder {encoder_name} is {encoder_line(found)} [{fingerprint(found)}], but the run {options.model} was trained on vectors "
            f"of {encoder_line(wanted)} [{fingerprint(wanted)}]; give --encoder {wanted['name']}, or a folder with the same weights"
        )
    text = _read_prompt(options.prompt)
    fits = encoder_info(encoder_name, device=options.device).fits
    lead, sentences = segment(text, fits=fits)
    sentences = sentences[: options.prompt_sentences]
    if not sentences:
        raise UserError(f"--prompt {options.prompt}: holds no sentence to continue")
    read = [sentence.text for sentence in sentences]

    def encode(texts: Any) -> Any:
        semantic = encoder.encode(texts).vectors
        return semantic if codec is None else encode_parts(texts, lambda _: semantic, codec, parts)

    source = options.source(encoder, device)
    codec = _codec(options, model, encoder, device)
    decoder: Decoder
    if options.decoder == "learned":
        assert codec is not None
        decoder = PlannedCode(codec, parts)
    else:
        (decoder,) = source.load([options.decoder])
        if isinstance(decoder, PrefixDecoder):
            decoder = decoder.drawing(options.word_temperature)
    forecasts = forecasts_for(model, decoder, options.model) if options.forecast else None
    if options.context_weight or options.lift or options.forecast:
        assert isinstance(decoder, PrefixDecoder)
        decoder = ContextDecoder(
            decoder,
            weight=options.context_weight,
            store=source.store() if options.lift else None,
            lift=options.lift,
            forecast=forecasts,
            forecast_weight=options.forecast,
        )
    if parts and options.decoder != "learned":
        decoder = SemanticPart(decoder, parts)
    ending = Ending.of(source.store()) if options.end else None
    snapped = options.decoder in ("prefix", "inversion") and source.has_store
    snap_to = options.snap_to or ("neighbours" if snapped else "none")
    store = source.store if source.has_store else None
    snap = make_snap(snap_to, model=model, decoder=decoder, encode=encode, store=store, k=options.snap, seed=options.seed)
    if snap and parts:
        snap = snap_semantic(snap, parts)
    say(
        f"reading {len(read)} sentences, planning {options.sentences}, wording them by {options.decoder} on {device} ({why})"
        + (", drawing each plan" if sampling else "")
        + (", re-encoding each" if options.re_encode else f", {options.block} at a time" if options.block else ", all in one batch")
        + {"none": "", "neighbours": f", plans snapped to {options.snap} stored sentences"}.get(snap_to, f", plans snapped to {snap_to}"),
        quiet=options.quiet,
    )
    written = continue_document(
        model, encode(read), decoder, options.sentences, read=read, section_S=np.array([sentence.section for sentence in sentences]),
        encode=encode if options.re_encode else None, seed=options.seed,
        sampling=sampling, snap=snap, block=options.block, ending=ending,
        foresee=forecasts.foresee if forecasts else None,
        on_sentence=lambda sentence: print(" ".join(sentence.split()), flush=True),
    )  # fmt: skip
    say(
        f"{len(written.texts)} sentences in {duration(written.seconds)}; plans turned away from repetition {written.n_turned}, "
        f"reworded {written.n_reworded}, left out {written.n_left_out}" + (", ended by the plan" if written.ended else ""),
        quiet=options.quiet,
    )
    document = lead + "".join(s.text + s.gap for s in sentences).rstrip() + "\n\n" + " ".join(written.texts) + "\n"
    if options.out:
        with atomic_write(options.out, "w") as handle:
            handle.write(document)
    return {
        "decoder": options.decoder,
        "prompt": options.prompt,
        "n_prompt_sentences": len(read),
        "sentences": written.texts,
        "n_turned": written.n_turned,
        "n_reworded": written.n_reworded,
        "n_left_out": written.n_left_out,
        "ended": written.ended,
        "snap_to": snap_to,
        "snap": options.snap if snap_to == "neighbours" else 0,
        "seconds": round(written.seconds, 3),
    }


def _codec(options: Options, model: LatentTransformer, encoder: SentenceEncoder, device: Any) -> LearnedCodec | None:
    """The learned code that the run reads and plans; None for a run of semantic vectors alone."""
    from lsm.decode.learned_code import LearnedCode
    from lsm.decode.learned_code_codec import LearnedCodec
    from lsm.decode.shipped import find_learned_code
    from lsm.errors import UserError
    from lsm.lm.frozen import FrozenLM

    names = [part.name for part in model.config.parts]
    if "residual" not in names:
        if options.decoder == "learned" or options.learned_code:
            raise UserError(
                f"--decoder learned and --learned-code need a run that plans learned codes, and {options.model} plans semantic vectors "
                "alone; train one with: lsm pretrain --data.space semantic+residual"
            )
        return None
    if options.decoder != "learned" and "semantic" not in names:
        raise UserError(f"--decoder {options.decoder}: the run {options.model} plans learned codes alone; give --decoder learned")
    code = LearnedCode.from_pretrained(options.learned_code or find_learned_code(encoder.fingerprint()))
    wanted = str((model.config.residual or {}).get("sha256"))
    if (found := code.fingerprint()["sha256"]) != wanted:
        raise UserError(f"the run plans codes of the learned code {wanted[:12]}, this is {found[:12]}; give that one with --learned-code")
    lm = FrozenLM.load(options.lm or code.home.adapter.lm["name"], device=device)
    return LearnedCodec(lm, code, getattr(encoder, "token_states", None))


def _read_prompt(prompt: str) -> str:
    import sys

    from lsm.text.readers import iter_documents

    if prompt == "-":
        return sys.stdin.read()
    return next(iter_documents([prompt], limit=1)).text
