"""The model card that decoder training writes beside an adapter."""

from __future__ import annotations

from lsm.decode.adapter import PrefixAdapter
from lsm.decode.settings import DecoderSettings

_CARD = """---
library_name: lsm
tags: [sentence-vectors, soft-prefix, text-generation]
---
# Prefix adapter: {encoder} → {lm}

Turns one sentence vector of the encoder `{encoder}` ({dim} dims) into {length} soft positions{lexical} for the frozen causal LM `{lm}`,
which then writes the sentence. The LM itself is {lora}.

    lsm invert --text "A sentence." --decoder prefix --adapter THIS_FOLDER

| held out, nats per token | |
|---|---|
{scores}

Trained by `lsm train-decoder` on {n_sentences:,} sentences of at most {max_tokens} tokens: {lexical_steps:,} lexical steps without
the LM, then {prefix_steps:,} steps of full-sequence cross-entropy with noise up to α = {noise:g} on the vectors. Encoder and LM are
identified by sha256 in `config.json`; with others the adapter is refused. What comes out is a paraphrase at best: measure with
`lsm roundtrip`.
"""

_ROWS = {
    "loss": "right vector",
    "loss_shuffled_vector": "another sentence's vector",
    "loss_zero_vector": "vector of zeros",
    "lexical_loss": "lexical lift alone, tokens still to come",
    "word_loss": "words of the prefix positions",
}


def adapter_card(adapter: PrefixAdapter, settings: DecoderSettings, *, n_sentences: int, scores: dict[str, float]) -> str:
    """The card as Markdown."""
    lexical_steps = settings.lexical_stage.steps
    return _CARD.format(
        encoder=adapter.home.encoder.get("name"),
        lm=adapter.home.lm["name"],
        dim=adapter.home.dim,
        length=settings.adapter.prefix_length,
        lexical=" and a lexical lift of its output" if settings.adapter.lexical else "",
        lora=f"extended by LoRA layers of rank {settings.adapter.lora_rank}" if settings.adapter.lora_rank else "unchanged",
        scores="\n".join(f"| {_ROWS[name]} | {value:.3f} |" for name, value in scores.items()),
        n_sentences=n_sentences,
        max_tokens=settings.reading.max_tokens,
        lexical_steps=lexical_steps,
        prefix_steps=settings.steps - lexical_steps,
        noise=settings.reading.noise,
    )
