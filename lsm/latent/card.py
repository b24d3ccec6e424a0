"""The model card that stands beside a saved latent transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from lsm import __version__

if TYPE_CHECKING:
    from lsm.latent.transformer import LatentTransformer


def model_card(model: LatentTransformer, *, training: dict[str, Any] | None = None, evaluation: dict[str, float] | None = None) -> str:
    """README.md as text. Equal runs give equal cards: no date, no machine and no timing in it."""
    encoder = model.config.encoder
    settings = model.config.model
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    front = {"library_name": "lsm", "tags": ["sentence-vectors", "latent-transformer"], "pipeline_tag": "feature-extraction"}
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "# Latent transformer",
        "",
        f"Reads the sentence vectors of a document ({encoder.get('name', 'unnamed encoder')}, {_dimensions(model)}) "
        "and predicts the next one.",
        f"{parameters:,} parameters: {settings.layers} layers, width {settings.hidden}, {settings.heads} heads, "
        f"context {settings.context} sentences, positions `{settings.positions}`, anchor `{settings.anchor}`, "
        f"normaliser `{settings.normaliser}`, sampling head `{settings.sampler}`. Made by lsm {__version__}.",
        "",
        "```python",
        "from lsm.latent.transformer import LatentTransformer",
        "",
        'model = LatentTransformer.from_pretrained("this folder")',
        "next_BSD = model.predict(z_BSD)  # each part of unit length: at each position the sentence after it",
        "```",
        "",
        "It understands vectors of this encoder only:",
        "",
        *_table(encoder),
    ]
    if training:
        lines += ["", "## Training", "", *_table(training)]
    if evaluation:
        lines += [
            "",
            "## Scores during training",
            "",
            "On a part of the held-out documents; `lsm evaluate` gives the full scoreboard with controls and intervals.",
            "",
            *_table({name: f"{value:.4f}" for name, value in evaluation.items()}),
        ]
    return "\n".join(lines) + "\n"


def _dimensions(model: LatentTransformer) -> str:
    parts = model.config.parts
    made_of = ": " + " ‖ ".join(f"{part.name} {part.dim}" for part in parts) if parts else ""
    return f"{model.config.dim} dimensions{made_of}"


def _table(values: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]
