"""The model card that training writes beside a learned code."""

from __future__ import annotations

from lsm.decode.learned_code import LearnedCode
from lsm.decode.learned_code_settings import LearnedCodeSettings

_CARD = """---
library_name: lsm
tags: [sentence-vectors, residual-code, text-generation]
---
# Learned residual code: {encoder} ‖ {dims} dims → {lm}

What a sentence vector of `{encoder}` loses of the wording, in {dims} dims of which any first k are a code; read back by the frozen causal
LM `{lm}` with a prefix made from vector and code. It holds sentences of up to {max_tokens} tokens. It never certifies what it gives back:
for exact recall there is the superposition code.

| dims kept | nats per token | written freely, exact |
|---|---|---|
{rows}

Controls at {dims} dims, nats per token: another sentence's code {shuffled:.3f}, a code of zeros {zero:.3f}. All on {n_evaluated} held-out
sentences of the training sets; measure on your own text with `scripts/bench_learned_code.py`.

Trained by `lsm train-decoder --config configs/learned-code.yaml`
on {n_sentences:,} sentences: {token_steps:,} steps without the LM, then {lm_steps:,}
steps of full-sequence cross-entropy, with noise up to α = {noise:g}. Encoder and LM are identified by sha256 in `config.json`.
"""


def code_card(code: LearnedCode, settings: LearnedCodeSettings, *, n_sentences: int, scores: dict[str, float]) -> str:
    """The card as Markdown."""
    home = code.home.adapter
    return _CARD.format(
        encoder=home.encoder.get("name"),
        lm=home.lm["name"],
        dims=settings.code.dims,
        max_tokens=settings.code.max_tokens,
        rows="\n".join(f"| {k} | {scores[f'loss_{k}']:.3f} | {scores[f'exact_{k}']:.1%} |" for k in settings.code.lengths),
        shuffled=scores["loss_shuffled_code"],
        zero=scores["loss_zero_code"],
        n_evaluated=int(scores["n_evaluated"]),
        n_sentences=n_sentences,
        token_steps=settings.token_stage.steps,
        lm_steps=settings.steps - settings.token_stage.steps,
        noise=settings.disturbance.noise,
    )
