"""The model card that training writes beside a reasoning stack."""

from __future__ import annotations

from lsm.reason.model import ReasonModel

_CARD = """---
library_name: lsm
tags: [idea-vector, soft-prefix, text-generation]
---
# Reasoning stack: {encoder} → idea vector of {dim} → {lm}

Token states of the frozen encoder `{encoder}` are pooled ({pooling}) and compressed to one idea vector of {dim} numbers; a middle model
({middle}) changes it; an expansion makes {length} soft positions of it, which the frozen causal LM `{lm}` reads before it writes.
The LM itself is {lora}.

    lsm reason generate THIS_FOLDER --text "An input."

| held out during training | |
|---|---|
{scores}

Trained by `lsm reason train` in {steps:,} steps, {aim_steps:,} of them without the LM, the others on {n_rows_read:,} rows of {n_rows:,};
of the {n_rows:,} inputs {n_inputs_cut:,} are longer than {limit} tokens and are cut. Encoder and LM are identified by sha256 in
`config.json`; with others the stack is refused.
Measure it beside its controls with `lsm reason eval`.
"""

_ROWS = {
    "loss": "nats per token of the target",
    "loss_shuffled_vector": "under another input's idea vector",
    "loss_zero_vector": "under an idea vector of zeros",
    "pairwise_cosine": "mean pairwise cosine of idea vectors",
    "cosine_thought_target": "mean cosine of a thought and the encoder's vector of its target",
}


def reason_card(model: ReasonModel, scores: dict[str, float]) -> str:
    """The card as Markdown."""
    settings, rank = model.settings, model.settings.expansion.lora_rank
    return _CARD.format(
        encoder=model.home.encoder.get("name"), lm=model.home.lm["name"], dim=settings.latent_dim, pooling=settings.pooling,
        middle=settings.middle.kind, length=settings.expansion.prefix_length, limit=model.max_input_tokens,
        lora=f"extended by LoRA layers of rank {rank}" if rank else "unchanged",
        scores="\n".join(f"| {_ROWS[name]} | {value:.3f} |" for name, value in scores.items()),
        **model.notes,
    )  # fmt: skip
