"""Which space to plan in: semantic vectors, learned codes, both side by side, or vectors in context, judged by what the predictions say.

    lsm encode-corpus TRAIN… --out CORPUS --residual learned --cap-characters 100      (and HELD_OUT… with the same options → JUDGED)
    lsm encode-corpus TRAIN… --out IN_CONTEXT --context-sentences 2 --cap-characters 100             (and HELD_OUT… → JUDGED_IN_CONTEXT)
    python scripts/bench_spaces.py --train CORPUS --judge JUDGED --out DIR [--config configs/latent-small.yaml --places 60]
        [--in-context IN_CONTEXT --judge-in-context JUDGED_IN_CONTEXT]

One run a space lies in DIR/runs and resumes. Each prediction is worded by every decoder that its space has (the prefix adapter for the
semantic part, the learned code's for codes), beside the true vector worded the same way: what a decoder loses, no plan can win back.
DIR/spaces.md is the table with ten predictions of each, DIR/spaces.json holds everything. Do not compare the vectors' own scores between
spaces: a vector in context holds some of what was read before it, and is told from others by that alone. Words are judged alike for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lsm.bench import wording
from lsm.bench.controls import sections_of
from lsm.bench.evaluation import MODEL, predictor_of
from lsm.bench.judged import Documents, choose_documents
from lsm.bench.next_sentence import measure
from lsm.commands.script import run_script
from lsm.config import load_settings, settings_from, to_dict
from lsm.corpus.reader import Corpus
from lsm.decode.decoders import Decoder
from lsm.decode.learned_code import LearnedCode
from lsm.decode.learned_code_codec import LearnedCodec
from lsm.decode.load import DecoderSource
from lsm.decode.shipped import find_learned_code
from lsm.encode.encoder import load_encoder
from lsm.errors import UserError
from lsm.files import atomic_write, write_json
from lsm.latent.pretrain import Pretraining
from lsm.latent.settings import PretrainSettings
from lsm.latent.space import judged_dims, slices
from lsm.latent.transformer import LatentTransformer
from lsm.lm.frozen import FrozenLM
from lsm.progress import Progress, say
from lsm.provenance import choose_device, report
from lsm.report import tables
from lsm.training.loop import Trainer
from lsm.write.parts import PlannedCode, SemanticPart

SPACES: dict[str, dict[str, Any]] = {
    "semantic": {"space": "semantic"},
    "semantic + code of 64": {"space": "semantic+residual", "residual_dims": 64},
    "semantic + code of 128": {"space": "semantic+residual", "residual_dims": 128},
    "code of 128": {"space": "residual", "residual_dims": 128},
}
IN_CONTEXT = "semantic, in context"
VECTORS = (
    tables.Column("predictor", "space", "text"),
    tables.Column("judged_by", "judged by its", "text"),
    tables.Column("recall_at_10", "recall@10", "share", interval=True),
    tables.Column("contrastive_accuracy", "contrastive accuracy", "share", interval=True),
    tables.Column("document_recall_at_1", "in-document recall@1", "share", interval=True),
    tables.Column("cosine", "cosine", "share"),
)
_EXAMPLES = 10


@dataclass
class Options:
    """What to train and judge."""

    train: Path
    """Corpus with learned codes to train on."""
    judge: Path
    """Held-out corpus with learned codes."""
    out: Path
    """Folder of runs and results."""
    in_context: Path | None = None
    """The training documents in context; they go through the same decoder, which never saw such vectors."""
    judge_in_context: Path | None = None
    """The held-out documents in context."""
    config: Path = Path("configs/latent-small.yaml")
    """Everything but the space."""
    places: int = 60
    """Predictions that are worded."""
    lm: str = "smollm2-135m-instruct"
    """LM that judges the words."""
    learned_code: Path | None = None
    """Folder of the learned code; default: the shipped one."""
    resamples: int = 1000
    seed: int = 0
    device: str = "auto"


def corpora(options: Options) -> dict[str, tuple[Path, Path]]:
    """Corpus to train on and corpus to judge on of each space.

    Raises:
        UserError: one corpus in context without the other, or one of other sentences.
    """
    found = dict.fromkeys(SPACES, (options.train, options.judge))
    if (options.in_context is None) != (options.judge_in_context is None):
        raise UserError("--in-context and --judge-in-context belong together; give both or neither")
    if options.in_context is not None and options.judge_in_context is not None:
        for plain, other in ((options.train, options.in_context), (options.judge, options.judge_in_context)):
            one, two = Corpus.open(plain), Corpus.open(other)
            if not two.encoder.get("context_sentences"):
                raise UserError(f"{other} holds sentences read alone; encode it with --context-sentences")
            if one.documents["text_sha256"] != two.documents["text_sha256"] or one.manifest["segmentation"] != two.manifest["segmentation"]:
                raise UserError(f"{other} holds other sentences than {plain}; encode the same text with the same --cap-characters")
        found |= {IN_CONTEXT: (options.in_context, options.judge_in_context)}
    return found


def train(options: Options, name: str, corpus: Path, device: torch.device) -> Path:
    """Train the run of a space, or what is missing of it."""
    raw = to_dict(load_settings(PretrainSettings, options.config))
    raw["data"] |= SPACES.get(name, {"space": "semantic"})
    settings = settings_from(PretrainSettings, raw, origin=name)
    run = options.out / "runs" / name.replace(" + ", "-").replace(" ", "-")
    say(f"{name} → {run}")
    Trainer(Pretraining.on_corpus(corpus, settings, seed=options.seed, device=device), settings, run, seed=options.seed).train()
    return run


def vector_rows(name: str, model: LatentTransformer, documents: Documents, resamples: int) -> list[dict[str, Any]]:
    """The next-sentence scoreboard of one run, by each part of its space."""
    predictor = predictor_of(model, sections_of(documents.vectors(), documents.sections()))
    places = slices(model.config.parts) or {"semantic": judged_dims(())}
    found = []
    for part, dims in places.items():
        (row,) = measure(documents.vectors(), documents.parts(), {name: predictor}, dims=dims).rows(resamples=resamples)
        found.append(row | {"judged_by": "code" if part == "residual" else part})
    return found


def decoders_of(model: LatentTransformer, prefix: Decoder, codec: LearnedCodec) -> dict[str, Decoder]:
    """What can word the predictions of a model."""
    parts = model.config.parts
    if not parts:
        return {"prefix": prefix}
    found: dict[str, Decoder] = {"learned": PlannedCode(codec, parts)}
    return ({"prefix": SemanticPart(prefix, parts)} if "semantic" in slices(parts) else {}) | found


def main(options: Options) -> None:
    """Train, judge, word, and write the tables."""
    device, why = choose_device(options.device)
    say(f"{device}: {why}")
    spaces = corpora(options)
    runs = {name: train(options, name, corpus, device) for name, (corpus, _) in spaces.items()}
    encoder = load_encoder(Corpus.open(options.judge).encoder["name"], device=str(device))
    prefix = DecoderSource(encoder=encoder.fingerprint(), device=device).prefix()
    code = LearnedCode.from_pretrained(options.learned_code or find_learned_code(encoder.fingerprint()))
    # An LM of its own: a code may bring LoRA layers.
    codec = LearnedCodec(FrozenLM.load(prefix.lm.name, device=device), code, getattr(encoder, "token_states", None))
    vectors: list[dict[str, Any]] = []
    said: dict[str, list[str]] = {}
    places: wording.Places | None = None
    for name, run in runs.items():
        model = LatentTransformer.from_pretrained(run, device=device)
        trained, judged = (Corpus.open(path) for path in spaces[name])
        documents = choose_documents(run, model, judged, trained, limit=None).held_out
        vectors += vector_rows(name, model, documents, options.resamples)
        places = wording.choose_places(documents, options.places, minimum_context=3, seed=options.seed)  # the same in every space
        predictor = predictor_of(model, sections_of(documents.vectors(), documents.sections()))
        planned = wording.predicted_at(documents, places, {MODEL: predictor})
        for by, decoder in decoders_of(model, prefix, codec).items():
            with Progress(f"{name}, {by}", len(places.truth), "places") as progress:
                worded = wording.word(planned, places, decoder, seed=options.seed)
                progress.advance(len(places.truth))
            said[f"{name}, {by}"] = worded[MODEL]
            said[f"{name}, true vector, {by}"] = worded[wording.TRUE_VECTOR]
            said |= {key: worded[key] for key in (wording.TRUTH, wording.ELSEWHERE)}
    assert places is not None
    judge = prefix.lm if prefix.lm.name == options.lm else FrozenLM.load(options.lm, device=device)
    with Progress("judging words", len(said) * len(places.truth), "texts") as progress:
        words = wording.measure(
            places, said, lambda texts: encoder.encode(texts).vectors, judge, resamples=options.resamples, advance=progress.advance
        )
    tables.show(vectors, VECTORS, title="Vectors")
    tables.show(words, tables.WORDING, title="Words")
    results = {"vectors": vectors, "words": words, "said": said, "context": [context[-1] for context in places.context]}
    write_json(options.out / "spaces.json", report(results, seed=options.seed, device=str(device), elapsed_seconds=0.0))
    with atomic_write(options.out / "spaces.md", "w") as handle:
        handle.write("\n".join(page(vectors, words, said, places)))
    print(f"tables in {options.out / 'spaces.md'}")


def page(
    vectors: Sequence[dict[str, Any]], words: Sequence[dict[str, Any]], said: dict[str, list[str]], places: wording.Places
) -> list[str]:
    """The tables, and the first ten places with all that was said there."""
    text = ["# Planning spaces", "", tables.markdown(vectors, VECTORS), "", tables.markdown(words, tables.WORDING), ""]
    for k in range(min(_EXAMPLES, len(places.truth))):
        text += [f"**{k + 1}.** after: {places.context[k][-1]}", ""]
        text += [f"* {name}: {texts[k]}" for name, texts in said.items() if name != wording.ELSEWHERE]
        text += [""]
    return text


if __name__ == "__main__":
    run_script(main, Options, __doc__)
