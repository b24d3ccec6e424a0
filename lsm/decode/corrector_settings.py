"""Settings of the corrector: its shape, what it is trained on, and whose hypotheses it learns to improve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lsm.config import STRICT
from lsm.decode.settings import AdapterSettings, ReadingSettings
from lsm.training.settings import TrainingSettings, refuse

SLOTS = 8
"""Hypotheses take whole eights of places."""


@dataclass(kw_only=True)
class CorrectorSettings(TrainingSettings):
    """`lsm train-decoder`: a corrector of what a prefix adapter writes, one step at a time."""

    __pydantic_config__ = STRICT

    kind: Literal["corrector"] = "corrector"
    """Says in a config that it is one of these."""
    lm: str = "smollm2-135m-instruct"
    """Frozen LM: asset name, hub id, local folder, or `stub`."""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """Shape of the adapter that turns each of target, hypothesis and their difference into a prefix; that of `--start-from`."""
    freeze_adapter: bool = False
    """Leave the adapter's weights as they are: what is trained then is how the three vectors enter it, and the LoRA layers."""
    lora_rank: int = 16
    """Rank of LoRA layers trained inside the LM; 0 = none."""
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    """What it is trained on."""
    hypothesis_tokens: int = 48
    """Longest hypothesis that is read, in tokens of the LM, a multiple of 8; the end of a longer one is cut off."""
    chunk_sentences: int = 512
    """Hypotheses are written before training, so many sentences at a time; an interrupted run keeps the chunks that it has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [
            f"{name} {value} must be at least {least}"
            for name, least in (("lora_rank", 0), ("hypothesis_tokens", 8), ("chunk_sentences", 1))
            if (value := getattr(self, name)) < least
        ]
        if self.hypothesis_tokens % SLOTS:
            problems.append(f"hypothesis_tokens {self.hypothesis_tokens} must be a multiple of {SLOTS}")
        if 3 * self.adapter.prefix_length + self.hypothesis_tokens + self.reading.max_tokens > self.reading.batch_positions:
            problems.append(f"reading.batch_positions {self.reading.batch_positions} is less than three prefixes, hypothesis and sentence")
        if self.adapter.lora_rank:
            problems.append("adapter.lora_rank: the corrector's LoRA layers are set by lora_rank")
        refuse(problems)
