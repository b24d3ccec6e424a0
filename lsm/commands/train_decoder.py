"""`lsm train-decoder`: train the adapter through which a frozen LM words sentence vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lsm.config import CommonOptions
from lsm.decode.settings import DecoderSettings


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
    """Adapter (folder or shipped name) whose weights a new run starts with."""
    settings: Annotated[DecoderSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=DecoderSettings)
    """Everything that shapes the result."""


def run(options: Options) -> dict[str, Any]:
    """Train, and print where the adapter lies and what it reaches on held-out sentences beside its controls."""
    import torch

    from lsm.corpus.reader import Corpus
    from lsm.decode.adapter import PrefixAdapter
    from lsm.decode.shipped import find_adapter
    from lsm.decode.training import PrefixTask
    from lsm.lm.frozen import FrozenLM
    from lsm.provenance import choose_device
    from lsm.training.loop import Trainer

    device, _ = choose_device(options.device)
    torch.set_num_threads(options.settings.threads)
    corpus = Corpus.open(options.corpus)
    lm = FrozenLM.load(options.settings.lm, device=device)
    start = PrefixAdapter.from_pretrained(find_adapter(options.start_from, encoder=corpus.encoder)) if options.start_from else None
    task = PrefixTask(corpus, lm, options.settings, seed=options.seed, start_from=start)
    trainer = Trainer(task, options.settings, options.out, seed=options.seed, resume=options.resume, quiet=options.quiet)
    results = trainer.train()
    scores = results["evaluation"]
    print(f"adapter in {options.out / 'final'}")
    print(
        f"held out, nats per token: {scores['loss']:.3f} (another sentence's vector {scores['loss_shuffled_vector']:.3f}, "
        f"zeros {scores['loss_zero_vector']:.3f})"
    )
    return results
