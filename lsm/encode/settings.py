"""Settings of a corpus-encoding run: what decides the bytes of the corpus, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsm.config import STRICT
from lsm.errors import UserError


@dataclass(kw_only=True)
class EncodeSettings:
    """How text becomes rows. Another value makes another corpus, so a resume with other settings is refused."""

    __pydantic_config__ = STRICT

    language: str = "en"
    """Language of the sentence segmentation (ISO 639-1)."""
    segmenter: Literal["sentencex", "sat"] = "sentencex"
    """Who finds the sentence boundaries; sat needs the extra lsm[sat]."""
    cap_characters: int = 200
    """Longer sentences are split at clause boundaries."""
    context_sentences: int = 0
    """Sentences before each that are read with it, but not pooled."""
    shard_rows: int = 16384
    """Sentences a shard holds (more only when one document has more)."""

    def __post_init__(self) -> None:
        problems = []
        if self.cap_characters < 20:
            problems.append(f"--cap-characters {self.cap_characters}: must be at least 20")
        if self.context_sentences < 0:
            problems.append(f"--context-sentences {self.context_sentences}: must be 0 or more")
        if self.shard_rows < 1:
            problems.append(f"--shard-rows {self.shard_rows}: must be at least 1")
        if problems:
            raise UserError("; ".join(problems))
