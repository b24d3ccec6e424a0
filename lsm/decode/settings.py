"""Settings of decoder training: the adapter's shape, what it reads, and the stages of its training."""

from __future__ import annotations

from dataclasses import dataclass, field

from lsm.config import STRICT
from lsm.training.settings import TrainingSettings, refuse


@dataclass(kw_only=True)
class AdapterSettings:
    """Shape of the adapter between sentence vectors and a frozen LM."""

    __pydantic_config__ = STRICT

    prefix_length: int = 8
    """Soft positions that the LM reads before the sentence."""
    hidden: int = 1024
    """Width of the adapter's trunk."""
    blocks: int = 1
    """Residual blocks in the trunk."""
    lexical: bool = True
    """Also lift the words that the vector speaks of, given those already written, in the LM's output."""
    soft_words: bool = True
    """Each prefix position starts as a mixture of word embeddings: the words of its stretch of the sentence, guessed from the vector."""
    lora_rank: int = 0
    """Rank of LoRA layers trained inside the LM; 0 = none, the LM stays as it is."""

    def __post_init__(self) -> None:
        problems = [
            f"adapter.{name} {value} must be at least {least}"
            for name, least in (("prefix_length", 1), ("hidden", 8), ("blocks", 0), ("lora_rank", 0))
            if (value := getattr(self, name)) < least
        ]
        refuse(problems)


@dataclass(kw_only=True)
class ReadingSettings:
    """What the adapter is trained on."""

    __pydantic_config__ = STRICT

    max_tokens: int = 48
    """Longest sentence in tokens of the LM, end token included; longer ones are left out of training."""
    held_out_fraction: float = 0.02
    """Share of documents kept for evaluation."""
    max_sentences: int | None = None
    """Train on the first this many sentences only; None = all."""
    noise: float = 0.2
    """Upper end of α in √(1−α)·z + √α·ε: how wrong a vector the adapter learns to bear."""
    batch_positions: int = 1536
    """Positions (prefix and tokens) of one batch in the prefix stage."""
    evaluation_sentences: int = 128
    """Held-out sentences scored at each evaluation."""

    def __post_init__(self) -> None:
        problems = [f"reading.noise {self.noise} must lie in 0..1"] * (not 0 <= self.noise <= 1)
        if not 0 < self.held_out_fraction < 1:
            problems.append(f"reading.held_out_fraction {self.held_out_fraction} must lie between 0 and 1")
        if self.max_tokens < 2:
            problems.append(f"reading.max_tokens {self.max_tokens} must be at least 2")
        if self.batch_positions < 2 or self.evaluation_sentences < 2:
            problems.append("reading.batch_positions and reading.evaluation_sentences must be at least 2")
        refuse(problems)


@dataclass(kw_only=True)
class LexicalStageSettings:
    """The cheap first stage: which words come next, without running the LM."""

    __pydantic_config__ = STRICT

    steps: int = 600
    """Steps of the run (the first ones) spent on it; 0 = none."""
    batch_sentences: int = 512
    """Sentences of one batch; one position of each is trained."""
    horizon_tokens: float = 6.0
    """The tokens still to come count exp(−distance / horizon)."""

    def __post_init__(self) -> None:
        problems = [f"lexical_stage.steps {self.steps} must not be negative"] * (self.steps < 0)
        if self.batch_sentences < 1 or not self.horizon_tokens > 0:
            problems.append("lexical_stage.batch_sentences and lexical_stage.horizon_tokens must be above 0")
        refuse(problems)


@dataclass(kw_only=True)
class DecoderSettings(TrainingSettings):
    """`lsm train-decoder`: a prefix adapter for one frozen LM."""

    __pydantic_config__ = STRICT

    lm: str = "smollm2-135m-instruct"
    """Frozen LM: asset name, hub id, local folder, or `stub`."""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """Shape of the adapter."""
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    """What it is trained on."""
    lexical_stage: LexicalStageSettings = field(default_factory=LexicalStageSettings)
    """The cheap first stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if self.lexical_stage.steps >= self.steps:
            problems.append(f"lexical_stage.steps {self.lexical_stage.steps} leaves no step of {self.steps} for the prefix")
        if self.adapter.prefix_length + self.reading.max_tokens > self.reading.batch_positions:
            problems.append(f"reading.batch_positions {self.reading.batch_positions} is less than one prefix and sentence")
        refuse(problems)
