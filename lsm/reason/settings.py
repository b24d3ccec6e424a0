"""Settings of `lsm reason`: what is read, the shape of the stack between two frozen models, and its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lsm.config import STRICT
from lsm.connector.settings import MiddleSettings
from lsm.decode.settings import AdapterSettings
from lsm.training.settings import TrainingSettings, refuse


@dataclass(kw_only=True)
class DataSettings:
    """What a row holds and how much of it is read."""

    __pydantic_config__ = STRICT

    inputs: list[str] = field(default_factory=lambda: ["text"])
    """Fields of a row that make up the input, joined by a line break (question and context, for instance)."""
    target: str = "summaries"
    """Field with the target: a text, or a list of texts of which the first is learned and all are references."""
    document: str = "id"
    """Field that names the document: rows of one document are held out together and resampled together."""
    max_input_tokens: int = 256
    """What the encoder reads of an input, in its tokens; the rest is cut off and counted."""
    max_target_tokens: int = 64
    """Longest target in tokens of the LM, end token included; the rest is cut off and counted."""
    max_rows: int | None = None
    """Train on the first this many rows only; None = all."""
    held_out_fraction: float = 0.02
    """Share of documents kept for the evaluations during training."""
    batch_positions: int = 640
    """Positions (prefix, prompt and target) that the LM reads in one batch."""
    keep_states: bool = False
    """Compute the encoder's states of all inputs before the first step and keep them in the run's folder, float16: worth it where rows are
    read several times (2 bytes × width × tokens of each input)."""
    evaluation_rows: int = 64
    """Held-out rows scored at each evaluation."""

    def __post_init__(self) -> None:
        least = {"max_input_tokens": 2, "max_target_tokens": 2, "batch_positions": 2, "evaluation_rows": 2}
        problems = [f"data.{name} {value} must be at least {n}" for name, n in least.items() if (value := getattr(self, name)) < n]
        if self.max_rows is not None and self.max_rows < 1:
            problems.append(f"data.max_rows {self.max_rows} must be at least 1 (or None for all)")
        if not self.inputs:
            problems.append("data.inputs names no field")
        if not 0 < self.held_out_fraction < 1:
            problems.append(f"data.held_out_fraction {self.held_out_fraction} must lie between 0 and 1")
        refuse(problems)


@dataclass(kw_only=True)
class StackSettings:
    """Shape of everything that is trained."""

    __pydantic_config__ = STRICT

    pooling: Literal["mean", "cls", "attention"] = "attention"
    """How token states become one vector; attention starts as the mean."""
    compress_hidden: int = 1024
    """Width inside the MLP that makes the idea vector of the pooled one; 0 = no MLP: the idea is the pooled vector itself (a linear map of
    it where widths differ), and only the middle can move it."""
    latent_dim: int = 256
    """Numbers in the idea vector."""
    middle: MiddleSettings = field(default_factory=MiddleSettings)
    """The model that thinks."""
    expansion: AdapterSettings = field(
        default_factory=lambda: AdapterSettings(prefix_length=16, blocks=1, lexical=False, soft_words=False, lora_rank=0)
    )
    """The MLP that makes soft positions of the middle's output: a prefix adapter, with its options (LoRA layers in the LM among them)."""
    prompt: str = "Summary:"
    """Tokens that the LM reads after the soft positions; may be empty."""

    def __post_init__(self) -> None:
        problems = [f"stack.latent_dim {self.latent_dim} must be at least 8"] * (self.latent_dim < 8)
        problems += [f"stack.compress_hidden {self.compress_hidden} must not be negative"] * (self.compress_hidden < 0)
        if self.middle.kind == "transformer" and self.latent_dim % self.middle.slots:
            problems.append(f"stack.middle.slots {self.middle.slots} does not divide stack.latent_dim {self.latent_dim}")
        refuse(problems)


@dataclass(kw_only=True)
class ReasonSettings(TrainingSettings):
    """`lsm reason train`: a stack from one frozen encoder to one frozen LM."""

    __pydantic_config__ = STRICT

    encoder: str = "answerdotai/ModernBERT-base"
    """Frozen encoder that gives token states: asset name, hub id, local folder, or `stub`."""
    lm: str = "gpt2"
    """Frozen LM: asset name, hub id, local folder, or `stub`."""
    quantise: Literal["4bit"] | None = None
    """4bit: the LM's linear layers as NF4 (CUDA and bitsandbytes); with stack.expansion.lora_rank this is QLoRA."""
    aim_steps: int = 0
    """The first so many steps do not run the LM: they draw the middle's output to the encoder's own vector of the target (1 − cosine, and
    telling it from the batch's other targets), and soft words to its words; latent_dim must be the encoder's width."""
    aim_rows: int = 64
    """Rows of a batch in those steps."""
    aim_weight: float = 0.0
    """Weight of 1 − cosine between the middle's output and the encoder's vector of the target in the steps through the LM."""
    word_weight: float = 1.0
    """Weight of the soft words' own loss, whose gradient is ten times that of the cross-entropy or more."""
    data: DataSettings = field(default_factory=DataSettings)
    """What is read."""
    stack: StackSettings = field(default_factory=StackSettings)
    """What is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [f"{name} {value} must not be negative" for name in ("aim_weight", "word_weight") if (value := getattr(self, name)) < 0]
        problems += [f"aim_steps {self.aim_steps} must lie in 0..steps {self.steps}"] * (not 0 <= self.aim_steps <= self.steps)
        problems += [f"aim_rows {self.aim_rows} must be at least 2"] * (self.aim_rows < 2)
        words = self.stack.expansion.soft_words and self.word_weight > 0
        moved = self.stack.pooling == "attention" or self.stack.compress_hidden or self.stack.middle.kind != "identity"
        problems += ["aim_steps find nothing to train: no attention, compression, middle or soft words"] * (
            self.aim_steps > 0 and not words and not moved
        )
        if self.stack.expansion.prefix_length + self.data.max_target_tokens > self.data.batch_positions:
            problems.append(f"data.batch_positions {self.data.batch_positions} is less than one prefix and target")
        refuse(problems)
