"""The model card that training writes beside a corrector."""

from __future__ import annotations

from lsm.decode.corrector import Corrector
from lsm.decode.corrector_settings import CorrectorSettings

_CARD = """---
library_name: lsm
tags: [sentence-vectors, embedding-inversion, text-generation]
---
# Corrector: {encoder} → {lm}

Reads a sentence vector of `{encoder}`, a hypothesis and the hypothesis's own vector, and writes a better hypothesis with the causal LM
`{lm}` and LoRA layers of rank {rank} (the idea of vec2text, Morris et al. 2023).

    lsm invert --text "A sentence." --decoder corrector --corrector THIS_FOLDER

| held out, nats per token | |
|---|---|
| right vector and hypothesis | {loss:.3f} |
| another sentence's vector | {loss_shuffled_vector:.3f} |
| another sentence's hypothesis | {loss_shuffled_hypothesis:.3f} |

Cosine to the target before one correction {cosine_hypothesis:.3f}, after it {cosine_corrected:.3f}, on held-out sentences of the training
sets. Trained by `lsm train-decoder --config configs/corrector.yaml`
on {n_sentences:,} sentences of at most {max_tokens} tokens, {steps:,} steps.
It learned from hypotheses of the prefix adapter with sha256 {hypotheses_of}; where that is not
the shipped one, give it with `--adapter`. Encoder and LM are identified by sha256 in `config.json`.
"""


def corrector_card(corrector: Corrector, settings: CorrectorSettings, *, n_sentences: int, scores: dict[str, float]) -> str:
    """The card as Markdown."""
    return _CARD.format(
        encoder=corrector.home.encoder.get("name"),
        lm=corrector.home.lm["name"],
        rank=corrector.lora_rank,
        n_sentences=n_sentences,
        max_tokens=settings.reading.max_tokens,
        steps=settings.steps,
        hypotheses_of=corrector.hypotheses_of[:12],
        **scores,
    )
