"""Settings of `lsm compress`: what reads the text, how it is pooled, what it is trained for, and on which questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lsm.config import STRICT
from lsm.training.settings import TrainingSettings, refuse

Source = Literal["lm", "encoder", "bytes"]
Pooling = Literal["mean", "weighted", "queries", "kept"]
Match = Literal["none", "rms", "distribution"]


@dataclass(kw_only=True)
class EncoderSettings:
    """Text → codes, one for each `ratio` tokens."""

    __pydantic_config__ = STRICT

    source: Source = "lm"
    """lm: states of the frozen LM itself, so that codes are made of its own word embeddings; encoder: token states of `name`, the same
    for every LM; bytes: UTF-8 bytes through a small network (known to fail)."""
    name: str = "minilm"
    """With source encoder: asset name, hub id or folder."""
    layer: int = 6
    """With source lm: after how many of its layers the states are taken; 0 = its input embeddings."""
    lora_rank: int = 0
    """With source lm: rank of LoRA layers inside the reading LM; the answering LM stays without them. 0 = none."""
    pooling: Pooling = "weighted"
    """mean of each window; weighted: by a trained score of each state, which starts as the mean; queries: cross-attention over all; kept:
    the tokens of the text with the highest scores, as they are."""
    rarity: float = 0.0
    """Scores start at this times the log of the token's number over their count: BPE tokens are numbered from frequent to rare."""
    score_hidden: int = 0
    """Width of a hidden layer of the score; 0 = none, the score is linear in the state."""
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
    match: Match = "none"
    """Soft tokens forced to the size (rms) or to each dimension's mean and spread (distribution) of the LM's word embeddings."""
    text_tokens: int = 0
    """Hybrid: so many first tokens go as text, the rest as codes."""
    cue: int = 0
    """Trained vectors behind the soft tokens that say how to answer; not counted as soft tokens, given to text too as a control."""

    def __post_init__(self) -> None:
        counts = ("layer", "lora_rank", "rarity", "score_hidden", "hidden", "codebook", "text_tokens", "cue")
        problems = [f"encoder.{name} {value} must not be negative" for name in counts if (value := getattr(self, name)) < 0]
        reads, scored, states = self.source == "lm", self.pooling in ("weighted", "kept"), bool(self.states)
        wanted = {
            "encoder.code_dim must be at least 1": self.code_dim is None or self.code_dim > 0,
            "encoder.depths count from 1": min(self.depths, default=1) > 0,
            "encoder.lora_rank needs encoder.source lm and a layer above 0": not self.lora_rank or (reads and self.layer > 0),
            "encoder.score_hidden needs encoder.pooling weighted or kept": not self.score_hidden or scored,
            "encoder.rarity needs encoder.source lm and pooling weighted or kept": not self.rarity or (reads and scored),
            "encoder.pooling kept needs encoder.source lm": self.pooling != "kept" or reads,
            "encoder.states count from 1, each once, in rising order": list(self.states) == sorted({*self.states} - {0}),
            "encoder.states needs encoder.source lm, another pooling than queries, and no code_dim, codebook or depths": not states
            or (reads and self.pooling != "queries" and not (self.code_dim or self.codebook or self.depths)),
        }
        problems += [problem for problem, holds in wanted.items() if not holds]
        refuse(problems)


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
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """What reads the text."""
    objectives: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    """What is asked of the soft tokens."""
    data: DataSettings = field(default_factory=DataSettings)
    """Which questions are trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        scored = self.encoder.source == "lm" and self.encoder.pooling in ("weighted", "kept") and not self.encoder.text_tokens
        if (self.objectives.spans or self.objectives.spans_steps) and not scored:
            refuse(["objectives.spans trains scores: it needs encoder.source lm, pooling weighted or kept, and no text_tokens"])
        refuse([f"ratios {self.ratios}: give at least one, each at least 1"] * (not self.ratios or min(self.ratios) < 1))
