"""Settings of the learned residual code: its shape, what it is trained against, and the two stages of its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lsm.config import STRICT
from lsm.decode.settings import AdapterSettings
from lsm.training.settings import TrainingSettings, refuse


@dataclass(kw_only=True)
class CodeSettings:
    """Shape of the code, its encoder and its reader."""

    __pydantic_config__ = STRICT

    lengths: tuple[int, ...] = (0, 16, 32, 64, 128, 256)
    """Numbers of leading dims that training keeps, one drawn for each sentence; the largest is the width of a whole code."""
    max_tokens: int = 24
    """Longest sentence that a code holds, in tokens of the LM, end token included; what is over is cut off."""
    token_dims: int = 64
    """Width of the vector that stands for one token before it is bound to its position."""
    hidden: int = 512
    """Hidden width of the reader."""
    context_queries: int = 4
    """Learned queries that pool the frozen encoder's token states into the code; 0 = the code is made of the LM's tokens alone."""
    lora_rank: int = 0
    """Rank of LoRA layers trained inside the LM; 0 = none, the LM stays as it is."""

    def __post_init__(self) -> None:
        problems = [
            f"code.{name} {value} must be at least {least}"
            for name, least in (("max_tokens", 2), ("token_dims", 2), ("hidden", 8), ("context_queries", 0), ("lora_rank", 0))
            if (value := getattr(self, name)) < least
        ]
        if not self.lengths or min(self.lengths) < 0 or max(self.lengths) < 1 or list(self.lengths) != sorted(set(self.lengths)):
            problems.append(f"code.lengths {list(self.lengths)} must be ascending numbers of dims, the last above 0")
        refuse(problems)

    @property
    def dims(self) -> int:
        """Dims of a whole code."""
        return self.lengths[-1]


@dataclass(kw_only=True)
class DisturbanceSettings:
    """What is done to codes in training, so that their neighbourhood can be read too."""

    __pydantic_config__ = STRICT

    noise: float = 0.2
    """Upper end of α in √(1−α)·code + √α·ε, drawn for each sentence; the semantic vector gets the same."""
    interpolation: float = 0.25
    """Share of sentences whose ε is another sentence's code instead of Gaussian noise."""
    token_dropout: float = 0.15
    """Share of tokens left out of the views that the contrastive loss compares, and of written tokens that are replaced by others."""
    latent_dropout: float = 0.0
    """Share of the dims of a code set to zero (its truncation, which is drawn anyway, comes on top)."""

    def __post_init__(self) -> None:
        refuse(
            [
                f"disturbance.{name} {value} must lie in 0..1, 1 excluded"
                for name in ("noise", "interpolation", "token_dropout", "latent_dropout")
                if not 0 <= (value := getattr(self, name)) < 1
            ]
        )


@dataclass(kw_only=True)
class ContrastSettings:
    """InfoNCE between the codes of two views of a sentence, the other sentences of the batch being the negatives."""

    __pydantic_config__ = STRICT

    weight: float = 0.0
    """Its share in the loss; 0 = none."""
    initial_tau: float = 0.2
    """Temperature at the first step."""
    final_tau: float = 0.03
    """Temperature at the last step, reached geometrically; below 0.02 it is unstable with large `accum_steps`."""
    recon_warmup_epochs: float = 2.0
    """Epochs of reconstruction alone before it sets in."""

    def __post_init__(self) -> None:
        problems = [f"contrast.weight {self.weight} must not be negative"] * (self.weight < 0)
        if not 0 < self.final_tau <= self.initial_tau:
            problems.append(f"contrast.final_tau {self.final_tau} must be above 0 and at most initial_tau {self.initial_tau}")
        if self.recon_warmup_epochs < 0:
            problems.append(f"contrast.recon_warmup_epochs {self.recon_warmup_epochs} must not be negative")
        refuse(problems)


@dataclass(kw_only=True)
class CodeReadingSettings:
    """What the code is trained on."""

    __pydantic_config__ = STRICT

    held_out_fraction: float = 0.02
    """Share of documents kept for evaluation."""
    max_sentences: int | None = None
    """Train on the first this many sentences only; None = all."""
    batch_positions: int = 1536
    """Positions (prefix and tokens) of one batch in the stage that runs the LM."""
    evaluation_sentences: int = 48
    """Held-out sentences scored, and written freely, at each evaluation."""

    def __post_init__(self) -> None:
        problems = [f"reading.held_out_fraction {self.held_out_fraction} must lie between 0 and 1"] * (not 0 < self.held_out_fraction < 1)
        if self.batch_positions < 2 or self.evaluation_sentences < 2:
            problems.append("reading.batch_positions and reading.evaluation_sentences must be at least 2")
        refuse(problems)


@dataclass(kw_only=True)
class TokenStageSettings:
    """The cheap first stage: every token from the code and the tokens before it, without running the LM."""

    __pydantic_config__ = STRICT

    steps: int = 2000
    """Steps of the run (the first ones) spent on it; it also fits the code's normaliser, so it cannot be left out."""
    batch_sentences: int = 256
    """Sentences of one batch."""
    negatives: int = 700
    """Tokens drawn at random beside those of the batch, over which the softmax runs."""
    context: bool = False
    """Run the frozen encoder in this stage too (cheap on a GPU); otherwise its states join in the stage that runs the LM."""

    def __post_init__(self) -> None:
        refuse(
            [
                f"token_stage.{name} {value} must be at least {least}"
                for name, least in (("steps", 1), ("batch_sentences", 2), ("negatives", 1))
                if (value := getattr(self, name)) < least
            ]
        )


@dataclass(kw_only=True)
class LearnedCodeSettings(TrainingSettings):
    """`lsm train-decoder`: a learned residual code and its reader for one frozen LM."""

    __pydantic_config__ = STRICT

    kind: Literal["learned-code"] = "learned-code"
    """Says in a config that it is one of these."""
    lm: str = "smollm2-135m-instruct"
    """Frozen LM: asset name, hub id, local folder, or `stub`."""
    accum_steps: int = 1
    """Batches whose gradients are averaged into one optimizer step; `accumulate` follows it."""
    code: CodeSettings = field(default_factory=CodeSettings)
    """Shape of the code, its encoder and its reader."""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """Shape of the prefix adapter that reads semantic vector and code; `--start-from` an adapter needs the same."""
    freeze_adapter: bool = False
    """Leave the adapter of `--start-from` as it is (needed to ship a code that refers to a shipped adapter instead of holding one)."""
    through_lm: bool = True
    """Send the gradient through the LM into prefix and LoRA layers; without it a step costs half, and the prefix learns its words alone."""
    disturbance: DisturbanceSettings = field(default_factory=DisturbanceSettings)
    """Noise, interpolation and dropout."""
    contrast: ContrastSettings = field(default_factory=ContrastSettings)
    """The contrastive loss."""
    reading: CodeReadingSettings = field(default_factory=CodeReadingSettings)
    """What it is trained on."""
    token_stage: TokenStageSettings = field(default_factory=TokenStageSettings)
    """The cheap first stage."""

    def __post_init__(self) -> None:
        problems = []
        if self.accum_steps == 1 < self.accumulate:
            problems.append(f"accumulate {self.accumulate} is called accum_steps here")
        self.accumulate = self.accum_steps
        super().__post_init__()
        if self.token_stage.steps > self.steps:
            problems.append(f"token_stage.steps {self.token_stage.steps} is more than steps {self.steps}")
        if self.adapter.prefix_length + self.code.max_tokens > self.reading.batch_positions:
            problems.append(f"reading.batch_positions {self.reading.batch_positions} is less than one prefix and sentence")
        if self.code.lora_rank and not self.through_lm:
            problems.append("code.lora_rank needs through_lm")
        if self.adapter.lora_rank:
            problems.append("adapter.lora_rank: the code's LoRA layers are set by code.lora_rank")
        refuse(problems)
