"""Shapes of the networks between a frozen reader and a frozen LM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsm.config import STRICT
from lsm.training.settings import refuse


@dataclass(kw_only=True)
class CompressorSettings:
    """Text → codes, one for each `ratio` tokens."""

    __pydantic_config__ = STRICT

    source: Literal["lm", "encoder", "bytes"] = "lm"
    """lm: states of the frozen LM itself, so that codes are made of its own word embeddings; encoder: token states of `name`, the same
    for every LM; bytes: UTF-8 bytes through a small network (known to fail)."""
    name: str = "minilm"
    """With source encoder: asset name, hub id or folder."""
    layer: int = 6
    """With source lm: after how many of its layers the states are taken; 0 = its input embeddings."""
    lora_rank: int = 0
    """With source lm: rank of LoRA layers inside the reading LM; the answering LM stays without them. 0 = none."""
    pooling: Literal["mean", "weighted", "queries", "kept"] = "weighted"
    """mean of each window; weighted: by a trained score of each state, which starts as the mean; queries: cross-attention over all; kept:
    the tokens of the text with the highest scores, as they are."""
    rarity: float = 0.0
    """Scores start at this times the log of the token's number over their count: BPE tokens are numbered from frequent to rare."""
    score_hidden: int = 0
    """Width of a hidden layer of the score; 0 = none, the score is linear in the state."""
    score_reach: int = 0
    """States on either side of a token that the hidden layer of its score sees as well: what comes next tells where an answer ends."""
    states: tuple[int, ...] = ()
    """With source lm: layers behind which a soft token's position takes the reader's pooled states there, in place of what the answering
    LM makes of it. With every layer a kept token is that token's keys and values, as evicting all others from a cache leaves them."""
    code_dim: int | None = None
    """Width of a code on the wire; None = as the source gives it."""
    hidden: int = 0
    """Width of a residual MLP behind the pooling; 0 = none."""
    depths: tuple[int, ...] = ()
    """Layers of the answering LM behind which a further projection of each code is added to its position's residual stream."""
    codebook: int = 0
    """Entries of a vector-quantised bottleneck (van den Oord et al. 2017); 0 = none."""
    match: Literal["none", "rms", "distribution"] = "none"
    """Soft tokens forced to the size (rms) or to each dimension's mean and spread (distribution) of the LM's word embeddings."""
    text_tokens: int = 0
    """Hybrid: so many first tokens go as text, the rest as codes."""
    cue: int = 0
    """Trained vectors behind the soft tokens that say how to answer; not counted as soft tokens, given to text too as a control."""

    @property
    def scored(self) -> bool:
        """Whether states have scores."""
        return self.pooling in ("weighted", "kept")

    def __post_init__(self) -> None:
        counts = ("layer", "lora_rank", "rarity", "score_hidden", "score_reach", "hidden", "codebook", "text_tokens", "cue")
        problems = [f"encoder.{name} {value} must not be negative" for name in counts if (value := getattr(self, name)) < 0]
        reads, states = self.source == "lm", bool(self.states)
        wanted = {
            "encoder.code_dim must be at least 1": self.code_dim is None or self.code_dim > 0,
            "encoder.depths count from 1": min(self.depths, default=1) > 0,
            "encoder.lora_rank needs encoder.source lm and a layer above 0": not self.lora_rank or (reads and self.layer > 0),
            "encoder.score_hidden needs encoder.pooling weighted or kept": not self.score_hidden or self.scored,
            "encoder.score_reach needs encoder.score_hidden": not self.score_reach or self.score_hidden > 0,
            "encoder.rarity needs encoder.source lm and pooling weighted or kept": not self.rarity or (reads and self.scored),
            "encoder.pooling kept needs encoder.source lm": self.pooling != "kept" or reads,
            "encoder.states count from 1, each once, in rising order": list(self.states) == sorted({*self.states} - {0}),
            "encoder.states needs encoder.source lm, another pooling than queries, and no code_dim, codebook or depths": not states
            or (reads and self.pooling != "queries" and not (self.code_dim or self.codebook or self.depths)),
        }
        problems += [problem for problem, holds in wanted.items() if not holds]
        refuse(problems)


@dataclass(kw_only=True)
class MiddleSettings:
    """The model between idea vector and expansion; every kind starts as no change at all."""

    __pydantic_config__ = STRICT

    kind: Literal["mlp", "transformer", "gru", "identity"] = "mlp"
    """mlp: residual blocks; transformer: over slots that the vector is cut into; gru: several steps, each re-reading what it has made of
    the idea; identity: none, the control."""
    hidden: int = 512
    """Width inside."""
    layers: int = 3
    """Blocks of the mlp, layers of the transformer."""
    slots: int = 8
    """Slots of the transformer; they divide latent_dim."""
    steps: int = 4
    """Steps of the gru."""

    def __post_init__(self) -> None:
        refuse([f"middle.{name} {value} must be at least 1" for name in ("hidden", "layers", "slots", "steps")
                if (value := getattr(self, name)) < 1])  # fmt: skip
