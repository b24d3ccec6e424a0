"""What shapes a cramming run: how targets grow, how vectors are optimised, and what is measured on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lsm.config import STRICT


@dataclass(kw_only=True)
class GrowthSettings:
    """How the number of tokens grows that a vector must give back."""

    __pydantic_config__ = STRICT

    first_tokens: int = 8
    """The first target."""
    factor: float = 1.5
    """Each target that was reached is followed by one so many times as long, until one fails; then the space between is halved."""
    resolution_tokens: int = 1
    """Halving ends when the tokens held and the shortest target that failed are so near."""
    restarts: int = 2
    """A first target that fails is tried again so many times, from other random vectors each time, before a shorter one is: some starts
    never learn their first token."""
    max_tokens: int = 64
    """Longest target; a text that reaches it may have more in it, and its row says so."""

    def __post_init__(self) -> None:
        least = min(self.first_tokens, self.resolution_tokens, self.restarts + 1)
        if least < 1 or self.max_tokens < self.first_tokens or self.factor <= 1:
            raise ValueError("growth: needs 1 ≤ first_tokens ≤ max_tokens, resolution_tokens ≥ 1, restarts ≥ 0 and factor > 1")


@dataclass(kw_only=True)
class StageSettings:
    """How vectors are optimised towards one target: AdamW, warm-started from the target before, the rate falling in half a cosine."""

    __pydantic_config__ = STRICT

    steps: int = 1000
    """Most steps; a stage ends sooner when its target is reached."""
    lr: float = 0.1
    lr_end: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.9
    weight_decay: float = 0.01
    init_std: float = 0.02
    """Vectors start as N(0, init_std²)."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.lr_end <= self.lr:
            raise ValueError("stage: needs steps ≥ 1 and 0 < lr_end ≤ lr")


@dataclass(kw_only=True)
class CramSettings:
    """Options of `lsm cram`, and entries of its config."""

    __pydantic_config__ = STRICT

    lm: str = "smollm2-135m-instruct"
    """The frozen LM: asset name, hub id or folder; `stub` is a tiny random one."""
    vectors: str = "1"
    """Numbers of memory vectors to measure, separated by commas, each from 1 to 32."""
    texts: int = 5
    """Texts: the first tokens of the first so many documents that are long enough; 0 measures usefulness alone."""
    start_token: bool = True
    """Read what the LM expects before every text, or one end token, before the vectors; without it the first vector stands where an LM
    keeps its attention sink, and cramming takes longer (docs/cram.md)."""
    skip_tokens: int = 0
    """Tokens left out at the beginning of each document, such as salutations that the LM knows by heart."""
    random_texts: int = 2
    """Controls: texts of words drawn from those of the documents, each distinct word as likely as any other."""
    one_pass_texts: int = 2
    """Texts that are crammed a second time into two vectors e and m, which give all tokens in one pass: e, then m once a token."""
    questions: int = 4
    """Short texts of our own that are crammed whole and then asked about (at most 8); 0 measures no usefulness."""
    question_vectors: int = 1
    """Vectors that each of them gets."""
    kl_weights: str = "0,1"
    """Weights, separated by commas, of the term that keeps the LM's predictions on unrelated sentences behind the vector; each is a run
    over the questions' texts."""
    kl_weight: float = 0.0
    """The same term's weight where capacity is measured."""
    kl_most: float = 0.25
    """Where the term has weight a target is reached only when it is below so many nats a token too."""
    bits: str = "8,6,4"
    """Bits of an entry of the quantised vectors that are checked again, separated by commas."""
    group: int = 64
    """Entries that share one 16-bit scale."""
    code: bool = True
    """Measure the superposition code of the same bytes on the same texts."""
    teacher_forced: float = 0.99
    """Share of right tokens after right tokens at which older work counts a text as held."""
    batch_texts: int = 8
    """Texts optimised side by side."""
    save_every: int = 50
    """Steps between two saved states."""
    precision: Literal["float32", "auto"] = "float32"
    """Arithmetic of the LM; auto takes bf16 where the hardware multiplies it."""
    threads: int = 1
    """CPU threads; part of the settings because sums depend on it."""
    growth: GrowthSettings = field(default_factory=GrowthSettings)
    stage: StageSettings = field(default_factory=StageSettings)

    def __post_init__(self) -> None:
        least = {"texts": 0, "skip_tokens": 0, "random_texts": 0, "one_pass_texts": 0, "questions": 0, "question_vectors": 1}
        least |= {"group": 1, "batch_texts": 1, "save_every": 1, "threads": 1}
        problems = [f"{name} must be at least {value}" for name, value in least.items() if getattr(self, name) < value]
        if self.one_pass_texts > self.texts:
            problems.append("one_pass_texts cannot be above texts")
        if not self.texts and (self.random_texts or not self.questions):
            problems.append("texts 0 needs random_texts 0 and questions")
        if self.kl_weight < 0 or self.kl_most <= 0 or not 0 < self.teacher_forced <= 1:
            problems.append("needs kl_weight ≥ 0, kl_most > 0 and 0 < teacher_forced ≤ 1")
        if problems:
            raise ValueError("; ".join(problems))
