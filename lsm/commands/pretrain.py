"""`lsm pretrain`: train a latent transformer on a corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lsm.config import CommonOptions
from lsm.latent.settings import PretrainSettings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lsm.corpus.reader import Corpus
    from lsm.decode.word_losses import PrefixLosses
    from lsm.lm.frozen import FrozenLM


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of `lsm pretrain`; those of the settings override the entries of `--config`."""

    corpus: Path
    """Folder that encode-corpus wrote."""
    out: Path
    """Folder of the run."""
    config: Path | None = None
    """YAML file with the settings, such as configs/latent-small.yaml; None = the defaults."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: go on with the run in --out or start one; never: refuse a folder that holds a run; must: refuse one that does not."""
    start_from: Path | None = None
    """Run whose weights to start from, of the same size and space: for a short fine-tune with other objectives."""
    adapter: str | None = None
    """Adapter through which the objectives `words` and `text_lm` read predictions: folder or shipped name; default: the shipped one for the
    encoder."""
    lexical_lm: str = "smollm2-135m-instruct"
    """LM whose words the objective `lexical` forecasts (its layers are not needed)."""
    index: Path | None = None
    """Phrase store of this corpus, in which `objectives.hard_negatives` are found (lsm build-index)."""
    settings: Annotated[PretrainSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=PretrainSettings)
    """Everything that shapes the result."""


def run(options: Options) -> dict[str, Any]:
    """Train, and print where the model lies and how it does on held-out documents. Under torchrun the processes share each batch."""
    from lsm.latent.pretrain import Pretraining
    from lsm.provenance import choose_device
    from lsm.training.distributed import joined
    from lsm.training.loop import Trainer

    device, _ = choose_device(options.device)
    with joined(device) as ranks:
        decoder, lexical_lm = _decoder(options, ranks.device or device), _lexical_lm(options, ranks.device or device)
        task = Pretraining.on_corpus(
            options.corpus,
            options.settings,
            decoder=decoder,
            lexical_lm=lexical_lm,
            start_from=options.start_from,
            seed=options.seed,
            ranks=ranks,
            **_neighbours(options),
        )
        trainer = Trainer(task, options.settings, options.out, seed=options.seed, resume=options.resume, quiet=options.quiet)
        results = trainer.train()
    if not ranks.is_first:
        return results
    scores = results["evaluation"]
    print(f"model in {options.out / 'final'}")
    print(
        f"held out: recall@10 {scores['recall_10']:.3f} (exponential mean {scores['control_recall_10']:.3f}), "
        f"median rank {scores['median_rank']:.0f} ({scores['control_median_rank']:.0f})"
    )
    return results


def _decoder(options: Options, device: torch.device) -> PrefixLosses | None:
    """What the objectives `words` and `text_lm` need, nothing without them."""
    from lsm.errors import UserError

    goals = options.settings.objectives
    if not goals.worded:
        if options.adapter:
            raise UserError(f"--adapter {options.adapter} is for the objectives words and text_lm; give one a weight: --objectives.words 1")
        return None
    from lsm.corpus.reader import Corpus
    from lsm.decode.load import DecoderSource
    from lsm.decode.word_losses import PrefixLosses

    corpus = Corpus.open(options.corpus)
    _require_text(corpus, "words" if goals.words else "text_lm")
    decoder = DecoderSource(encoder=corpus.encoder, adapter=options.adapter, device=device).prefix()
    return PrefixLosses(decoder, max_tokens=goals.words_tokens, context_tokens=goals.words_context)


def _lexical_lm(options: Options, device: torch.device) -> FrozenLM | None:
    """What the objective `lexical` needs, nothing without it."""
    if not options.settings.objectives.lexical:
        return None
    from lsm.corpus.reader import Corpus
    from lsm.lm.frozen import FrozenLM

    _require_text(Corpus.open(options.corpus), "lexical")
    lm = FrozenLM.load(options.lexical_lm, device=device)
    lm.drop_layers()
    return lm


def _require_text(corpus: Corpus, objective: str) -> None:
    from lsm.errors import UserError

    if not corpus.keeps_text:
        raise UserError(f"--corpus {corpus.path} keeps no text for the objective {objective}; encode it without --drop-text")


def _neighbours(options: Options) -> dict[str, Any]:
    """What hard negatives need, nothing without them."""
    from lsm.errors import UserError

    wanted = options.settings.objectives.hard_negatives
    if (options.index is None) == (wanted > 0):
        raise UserError(
            f"--objectives.hard-negatives {wanted} needs --index FILE, the phrase store of the corpus (lsm build-index)"
            if wanted
            else f"--index {options.index} is for hard negatives; ask for some: --objectives.hard-negatives 1"
        )
    if options.index is None:
        return {}
    import numpy as np

    from lsm.corpus.reader import Corpus
    from lsm.decode.phrase_store import PhraseStore
    from lsm.files import sha256_file

    corpus, index = Corpus.open(options.corpus), options.index
    if not index.is_file():
        raise UserError(f"--index {index}: no such phrase store; build it with: lsm build-index --corpus {options.corpus} --out {index}")

    store = PhraseStore.open(index)
    row_N, times_N = store.corpus_rows(corpus)
    once_N = np.append(np.where(times_N == 1, row_N, -1), -1)  # the last is what the store calls -1: no more

    def neighbours(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        cosine_BK, found_BK = store.search(corpus.vector_at(rows), k)
        return cosine_BK, once_N[found_BK]

    return {"neighbours": neighbours, "index": sha256_file(options.index)[:16]}
