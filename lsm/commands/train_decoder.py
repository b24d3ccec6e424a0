"""`lsm train-decoder`: train what a frozen LM words sentence vectors through: a prefix adapter, a corrector, or a learned residual code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lsm.config import CommonOptions
from lsm.decode.corrector_settings import CorrectorSettings
from lsm.decode.learned_code_settings import LearnedCodeSettings
from lsm.decode.settings import DecoderSettings

if TYPE_CHECKING:
    from lsm.corpus.reader import Corpus
    from lsm.decode.corrector_training import CorrectorTask
    from lsm.decode.learned_code_training import LearnedCodeTask
    from lsm.decode.training import PrefixTask
    from lsm.lm.frozen import FrozenLM


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of `lsm train-decoder`; those of the settings override the entries of `--config`."""

    corpus: Path
    """Folder that encode-corpus wrote."""
    out: Path
    """Folder of the run; the adapter lies in its `final`."""
    config: Path | None = None
    """YAML file with the settings, such as configs/decoder-prefix.yaml; None = the defaults."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: go on with the run in --out or start one; never: refuse a folder that holds a run; must: refuse one that does not."""
    start_from: str | None = None
    """Adapter (folder or shipped name) whose weights a new run starts with; a corrector learns to improve what this one writes."""
    encoder: str | None = None
    """Learned code and corrector: where the corpus's encoder lies, when it is not the asset of its name."""
    settings: Annotated[DecoderSettings | LearnedCodeSettings | CorrectorSettings, tyro.conf.OmitArgPrefixes] = field(
        default_factory=DecoderSettings
    )
    """Everything that shapes the result; the config's `kind` says what is trained, and without one it is a prefix adapter."""


def run(options: Options) -> dict[str, Any]:
    """Train, and print where the result lies and what it reaches on held-out sentences beside its controls."""
    import torch

    from lsm.corpus.reader import Corpus
    from lsm.lm.frozen import FrozenLM
    from lsm.provenance import choose_device
    from lsm.training.loop import Trainer

    settings = options.settings
    device, _ = choose_device(options.device)
    torch.set_num_threads(settings.threads)
    corpus = Corpus.open(options.corpus)
    lm = FrozenLM.load(settings.lm, device=device)
    if isinstance(settings, LearnedCodeSettings):
        task = _learned_code(options, settings, corpus, lm)
    elif isinstance(settings, CorrectorSettings):
        task = _corrector(options, settings, corpus, lm)
    else:
        task = _prefix(options, settings, corpus, lm)
    trainer = Trainer(task, settings, options.out, seed=options.seed, resume=options.resume, quiet=options.quiet)
    results = trainer.train()
    scores = results["evaluation"]
    print(f"{task.name} in {options.out / 'final'}")
    wrong = ", ".join(f"{_CONTROLS[name]} {scores[name]:.3f}" for name in _CONTROLS if name in scores)
    print(f"held out, nats per token: {scores['loss']:.3f} ({wrong})")
    return results


_CONTROLS = {
    "loss_shuffled_vector": "another sentence's vector",
    "loss_zero_vector": "zeros",
    "loss_shuffled_hypothesis": "another sentence's hypothesis",
    "loss_shuffled_code": "another sentence's code",
    "loss_zero_code": "a code of zeros",
}


def _prefix(options: Options, settings: DecoderSettings, corpus: Corpus, lm: FrozenLM) -> PrefixTask:
    from lsm.decode.adapter import PrefixAdapter
    from lsm.decode.shipped import find_adapter
    from lsm.decode.training import PrefixTask

    start = PrefixAdapter.from_pretrained(find_adapter(options.start_from, encoder=corpus.encoder)) if options.start_from else None
    return PrefixTask(corpus, lm, settings, seed=options.seed, start_from=start)


def _corrector(options: Options, settings: CorrectorSettings, corpus: Corpus, lm: FrozenLM) -> CorrectorTask:
    from lsm.decode.adapter import PrefixAdapter
    from lsm.decode.corrector_training import CorrectorTask
    from lsm.decode.shipped import find_adapter
    from lsm.encode.encoder import load_encoder

    encoder = load_encoder(options.encoder or corpus.encoder["name"], device=options.device)
    corpus.require_encoder(encoder.fingerprint())
    start = PrefixAdapter.from_pretrained(find_adapter(options.start_from, encoder=corpus.encoder))
    return CorrectorTask(
        corpus, lm, settings, seed=options.seed, start_from=start, encode=lambda texts: encoder.encode(list(texts)).vectors
    )


def _learned_code(options: Options, settings: LearnedCodeSettings, corpus: Corpus, lm: FrozenLM) -> LearnedCodeTask:
    from lsm.decode.learned_code_training import LearnedCodeTask, StartAdapter
    from lsm.encode.encoder import load_encoder

    start = StartAdapter.load(options.start_from, encoder=corpus.encoder) if options.start_from else None
    states_of, width = None, 0
    if settings.code.context_queries:
        encoder = load_encoder(options.encoder or corpus.encoder["name"], device=options.device)
        corpus.require_encoder(encoder.fingerprint())
        states_of, width = getattr(encoder, "token_states", None), encoder.dim
    return LearnedCodeTask(corpus, lm, settings, seed=options.seed, states_of=states_of, state_width=width, start_from=start)
