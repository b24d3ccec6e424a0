"""`lsm pretrain`: train a latent transformer on a corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lsm.config import CommonOptions
from lsm.latent.settings import PretrainSettings


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
    settings: Annotated[PretrainSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=PretrainSettings)
    """Everything that shapes the result."""


def run(options: Options) -> dict[str, Any]:
    """Train, and print where the model lies and how it does on held-out documents."""
    from lsm.latent.pretrain import Pretraining
    from lsm.provenance import choose_device
    from lsm.training.loop import Trainer

    device, _ = choose_device(options.device)
    task = Pretraining.on_corpus(options.corpus, options.settings, seed=options.seed, device=device)
    trainer = Trainer(task, options.settings, options.out, seed=options.seed, resume=options.resume, quiet=options.quiet)
    results = trainer.train()
    scores = results["evaluation"]
    print(f"model in {options.out / 'final'}")
    print(
        f"held out: recall@10 {scores['recall_10']:.3f} (exponential mean {scores['control_recall_10']:.3f}), "
        f"median rank {scores['median_rank']:.0f} ({scores['control_median_rank']:.0f})"
    )
    return results
