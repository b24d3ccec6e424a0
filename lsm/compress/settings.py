"""Settings of `lsm compress`: what reads the text, how it is pooled, what it is trained for, and on which questions."""

from __future__ import annotations

from dataclasses import dataclass, field

from lsm.config import STRICT
from lsm.connector.settings import CompressorSettings
from lsm.training.settings import TrainingSettings, refuse


@dataclass(kw_only=True)
class ObjectiveSettings:
    """What is asked of the soft tokens; a weight of 0 turns a term off."""

    __pydantic_config__ = STRICT

    answer: float = 1.0
    """Cross-entropy of the whole answer, end token included."""
    first_tokens: int = 0
    """Supervise only so many first answer tokens (known to fail); 0 = all."""
    distill: float = 0.0
    """KL from the same LM reading the full text, on every supervised answer token."""
    temperature: float = 1.0
    """Of both distributions in `distill`; the term is multiplied by its square (Hinton et al. 2015)."""
    reconstruct: float = 0.0
    """Cross-entropy of the text itself after the soft tokens."""
    reconstruct_steps: int = 0
    """So many first steps only reconstruct; where `reconstruct` is 0 they use weight 1."""
    reconstruct_tokens: int = 48
    """First tokens of the text that are reconstructed."""
    align: float = 0.0
    """Squared distance of each soft token from the mean word embedding of its window, in units of the embeddings' size."""
    anchor: float = 0.0
    """1 − cosine of the mean soft token and the mean word embedding of the whole text (semantic anchor)."""
    diversity: float = 0.0
    """Mean squared cosine between the soft tokens of one text."""
    contrastive: float = 0.0
    """InfoNCE: the mean soft token finds its text's mean word embedding among those of the batch (temperature 0.07)."""
    scheduled: float = 0.0
    """Share of answer tokens that are read as the LM itself wrote them (scheduled sampling, Bengio et al. 2015)."""
    spans: float = 0.0
    """Binary cross-entropy of each token's score to whether it stands in the answer to a training question on its text: what to keep."""
    spans_steps: int = 0
    """So many first steps only do that, without the answering LM; where `spans` is 0 they use weight 1."""
    spans_texts: int = 16
    """Texts of a batch in those steps; what their scores read is computed once and kept."""

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in vars(self).items() if name != "temperature"}
        problems = [f"objectives.{name} {value} must not be negative" for name, value in numbers.items() if value < 0]
        problems += [f"objectives.temperature {self.temperature} must be above 0"] * (not self.temperature > 0)
        problems += [f"objectives.scheduled {self.scheduled} must be at most 1"] * (self.scheduled > 1)
        least = ("reconstruct_tokens", "spans_texts")
        problems += [f"objectives.{name} must be at least 1" for name in least if getattr(self, name) < 1]
        names = ("answer", "distill", "reconstruct", "align", "spans", "reconstruct_steps", "spans_steps")
        if not any(getattr(self, name) for name in names):
            problems.append("objectives: every weight is 0; give at least one of answer, distill, reconstruct, align, spans")
        refuse(problems)


@dataclass(kw_only=True)
class DataSettings:
    """Which questions are trained on."""

    __pydantic_config__ = STRICT

    train: tuple[str, ...] = ()
    """JSONL files, folders or hf:DATASET[@CONFIG][:SPLIT] with text, question, answers and, where there is one, title."""
    held_out_fraction: float = 0.05
    """Share of articles kept for the evaluations on the way."""
    max_context_tokens: int = 320
    """Questions about longer texts are left out."""
    questions_per_context: int = 6
    """At most so many of a text's questions in one batch; the LM reads the text's soft tokens once for all of them."""
    contexts: int = 4
    """Texts of a batch."""
    evaluation_questions: int = 48
    """Held-out questions at each evaluation on the way."""
    shots: bool = True
    """Before every text, in every row of the scoreboard, stands one worked example that shows how short an answer is."""

    def __post_init__(self) -> None:
        names = ("max_context_tokens", "questions_per_context", "contexts", "evaluation_questions")
        problems = [f"data.{name} {value} must be at least 1" for name in names if (value := getattr(self, name)) < 1]
        problems += [f"data.held_out_fraction {self.held_out_fraction} must lie in 0..1"] * (not 0 < self.held_out_fraction < 1)
        refuse(problems)


@dataclass(kw_only=True)
class CompressSettings(TrainingSettings):
    """`lsm compress train`: soft tokens for one frozen LM."""

    __pydantic_config__ = STRICT

    lm: str = "smollm2-135m-instruct"
    """Frozen LM: asset name, hub id, local folder, or `stub`."""
    ratios: tuple[int, ...] = (4, 8, 16)
    """Tokens a code; each batch draws one of them, one model serves all."""
    encoder: CompressorSettings = field(default_factory=CompressorSettings)
    """What reads the text."""
    objectives: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    """What is asked of the soft tokens."""
    data: DataSettings = field(default_factory=DataSettings)
    """Which questions are trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scored = self.encoder.source == "lm" and self.encoder.scored and not self.encoder.text_tokens
        if (self.objectives.spans or self.objectives.spans_steps) and not scored:
            refuse(["objectives.spans trains scores: it needs encoder.source lm, pooling weighted or kept, and no text_tokens"])
        refuse([f"ratios {self.ratios}: give at least one, each at least 1"] * (not self.ratios or min(self.ratios) < 1))
