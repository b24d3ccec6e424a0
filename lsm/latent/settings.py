"""Settings of the latent transformer, its objectives and its pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lsm.config import STRICT
from lsm.training.settings import TrainingSettings, refuse

Attention = Literal["sdpa", "xformers", "flex"]
Space = Literal["semantic", "semantic+residual", "residual"]
RopeScaling = Literal["ntk", "linear"]
OBJECTIVES = ("mse", "infonce", "in_document", "denoise", "sampler", "words", "text_lm", "lexical", "ahead")


@dataclass(kw_only=True)
class ModelSettings:
    """Size and shape of the latent transformer."""

    __pydantic_config__ = STRICT

    context: int = 128
    """Sentences that the model looks back on."""
    hidden: int = 384
    """Width of the transformer."""
    layers: int = 6
    """Transformer blocks; 0 leaves the anchor and one linear correction."""
    heads: int = 6
    """Attention heads."""
    ffn_ratio: float = 8 / 3
    """Width of the SwiGLU layer over `hidden` (rounded to a multiple of 32)."""
    dropout: float = 0.1
    """Dropout on what each attention and SwiGLU layer adds."""
    positions: Literal["rope", "rope-2d", "alibi"] = "rope"
    """rope: rotary; rope-2d: half of each head's channels turn by the number of the section, half by the place in it; alibi: scores fall
    with distance."""
    rope_theta: float = 10000.0
    """Base of the rotary positions."""
    rope_scale: float = 1.0
    """Make rotary positions fit windows so many times as long as those trained on."""
    rope_scaling: RopeScaling = "ntk"
    """How rope_scale does it: ntk raises the base, linear divides the positions."""
    attention: Attention = "sdpa"
    """How attention is computed in training: xformers and flex (FlexAttention) run on CUDA only. A saved model is read with sdpa."""
    anchor: Literal["attention", "last", "none"] = "attention"
    """What the head corrects, starting from no correction: heads that attend to the vectors read and start as an exponential mean; the last
    vector; or nothing."""
    normaliser: Literal["standard", "robust", "none"] = "standard"
    """Per-dimension scaling fitted on the training documents: mean and deviation, median and quartiles, or none."""
    sampler: Literal["none", "energy", "flow", "diffusion"] = "none"
    """Head that draws next vectors beside the one that predicts one: trained by the energy score, by flow matching or as diffusion."""
    sampler_width: int = 384
    """Width of the sampling head; the energy head's noise has as many dimensions."""
    sampler_blocks: int = 3
    """Residual blocks of the sampling head."""

    def __post_init__(self) -> None:
        problems = []
        if self.context < 2:
            problems.append(f"model.context {self.context} must be at least 2")
        if self.layers < 0 or self.heads < 1:
            problems.append(f"model.layers {self.layers} must be at least 0 and model.heads {self.heads} at least 1")
        elif self.hidden < 4 or self.hidden % (2 * self.heads):
            problems.append(f"model.hidden {self.hidden} must be a multiple of twice model.heads {self.heads}")
        elif self.positions == "rope-2d" and self.hidden % (8 * self.heads):
            problems.append(f"model.positions rope-2d: model.hidden {self.hidden} must be a multiple of 8 × model.heads {self.heads}")
        elif self.positions == "rope" and self.hidden == 2 * self.heads:
            problems.append(f"model.positions rope: model.hidden {self.hidden} must be at least 4 × model.heads {self.heads}")
        if not self.ffn_ratio > 0:
            problems.append(f"model.ffn_ratio {self.ffn_ratio} must be above 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"model.dropout {self.dropout} must lie in [0, 1)")
        if self.sampler_width < 1 or self.sampler_blocks < 1:
            problems.append(f"model.sampler_width {self.sampler_width} and model.sampler_blocks {self.sampler_blocks} must be at least 1")
        if not self.rope_theta > 1 or not self.rope_scale >= 1:
            problems.append(f"model.rope_theta {self.rope_theta} must be above 1 and model.rope_scale {self.rope_scale} at least 1")
        refuse(problems)


@dataclass(kw_only=True)
class ObjectiveSettings:
    """One weighted sum; a weight of 0 switches its objective off (and saves its time)."""

    __pydantic_config__ = STRICT

    mse: float = 0.1
    """Weight of the mean squared error of the next vector, in the normaliser's space. Alone it predicts the mean."""
    infonce: float = 1.0
    """Weight of telling the next sentence from the batch's others by cosine (InfoNCE)."""
    in_document: float = 0.0
    """Weight of telling the next sentence from the later ones of its own document alone, by the same cosines."""
    focus: float = 0.5
    """Bounds both InfoNCE terms, from 0 (cross-entropy: the far ranks weigh most) to 1 (the first ranks alone count)."""
    denoise: float = 0.1
    """Weight of restoring masked spans of sentences, seen from both sides."""
    sampler: float = 0.0
    """Weight of the sampling head's own loss (energy score, flow matching or diffusion, as model.sampler says)."""
    words: float = 0.0
    """Weight of the cross-entropy of the next sentence's tokens when a frozen decoder reads the predicted vector (SONAR-LLM, Dragunov et
    al. 2025). A pass through the LM for each sentence: for a short fine-tune."""
    text_lm: float = 0.0
    """Weight of KL(p‖q) over the next sentence's tokens: p of the frozen LM that reads the text before them itself, q of the decoder that
    reads the predicted vector (distillation, Hinton et al. 2015). Two passes through the LM for each sentence."""
    words_sentences: int = 32
    """Sentences of a batch that are worded, by `words` and `text_lm` alike."""
    words_tokens: int = 48
    """Tokens of a sentence that are worded, from its first on."""
    words_context: int = 96
    """Tokens of the text before a sentence that the LM of `text_lm` reads, the last ones."""
    lexical: float = 0.0
    """Weight of forecasting the words of the next sentence, as a bag (mean squared error over the bags' variance)."""
    ahead: float = 0.0
    """Weight of the mean squared error of sentences beyond the next, each predicted by a head of its own from the same place (Gloeckle et
    al. 2024, there with tokens), in the normaliser's space."""
    ahead_sentences: int = 3
    """How many sentences beyond the next `ahead` predicts."""
    energy_samples: int = 8
    """Samples a position behind an energy score."""
    hide_state: float = 0.15
    """Share of positions at which a flow or diffusion head must do without the context, so that it can be guided later."""
    temperature: float = 0.05
    """Temperature that InfoNCE starts from; it is learned."""
    temperature_min: float = 0.01
    """Lower bound of the learned temperature."""
    in_document_negatives: bool = True
    """Let InfoNCE tell the next sentence from later ones of its document too; sentences already read are never negatives."""
    later_pieces: bool = True
    """Let InfoNCE predict the later pieces of sentences that were split for their length, and use them as negatives."""
    hard_negatives: int = 0
    """For each target so many sentences that resemble it join the candidates of its batch in training (needs --index)."""
    hard_negatives_near: int = 32
    """They are drawn from so many of its nearest."""
    hard_negatives_most: float = 0.95
    """Those nearer than this cosine are taken for the same sentence and left out."""
    mask_ratio_min: float = 0.15
    """Smallest share of a row's sentences that is masked."""
    mask_ratio_max: float = 0.30
    """Largest share of a row's sentences that is masked."""
    mask_span: float = 3.0
    """Mean length of a masked span, in sentences."""
    denoise_rows: float = 0.25
    """Share of a batch's rows that also go through the denoising pass."""

    @property
    def contrasts(self) -> bool:
        """Whether either InfoNCE term is on."""
        return self.infonce > 0 or self.in_document > 0

    @property
    def point(self) -> bool:
        """Whether an objective trains the head that predicts one vector."""
        return self.mse > 0 or self.worded or self.contrasts

    @property
    def worded(self) -> bool:
        """Whether an objective needs a frozen decoder."""
        return self.words > 0 or self.text_lm > 0

    @property
    def heads_ahead(self) -> int:
        """Heads that predict sentences beyond the next."""
        return self.ahead_sentences if self.ahead > 0 else 0

    def __post_init__(self) -> None:
        problems = [f"objectives.{name} {getattr(self, name)} must not be negative" for name in OBJECTIVES if not getattr(self, name) >= 0]
        if not problems and not any(getattr(self, name) for name in OBJECTIVES):
            problems.append(f"objectives: {', '.join(OBJECTIVES[:-1])} and {OBJECTIVES[-1]} are all 0; give at least one a weight")
        if self.words_sentences < 1 or self.words_tokens < 2:
            problems.append(f"objectives.words_sentences {self.words_sentences} must be at least 1 and words_tokens {self.words_tokens} 2")
        if self.words_context < 1:
            problems.append(f"objectives.words_context {self.words_context} must be at least 1")
        if self.ahead_sentences < 1:
            problems.append(f"objectives.ahead_sentences {self.ahead_sentences} must be at least 1 (objectives.ahead 0 predicts none)")
        if self.energy_samples < 2:
            problems.append(f"objectives.energy_samples {self.energy_samples} must be at least 2")
        if not 0 <= self.hide_state < 1:
            problems.append(f"objectives.hide_state {self.hide_state} must lie in [0, 1)")
        if not 0 <= self.focus <= 1:
            problems.append(f"objectives.focus {self.focus} must lie in [0, 1]")
        if self.in_document and not self.in_document_negatives:
            problems.append(f"objectives.in_document {self.in_document} needs objectives.in_document_negatives")
        if not 0 <= self.hard_negatives <= self.hard_negatives_near or not 0 < self.hard_negatives_most <= 1:
            problems.append(
                f"objectives.hard_negatives {self.hard_negatives} must lie between 0 and hard_negatives_near {self.hard_negatives_near}, "
                f"and hard_negatives_most {self.hard_negatives_most} in (0, 1]"
            )
        if self.hard_negatives and not self.contrasts:
            problems.append(f"objectives.hard_negatives {self.hard_negatives} needs a weight for infonce or in_document")
        if not 0 < self.temperature_min <= self.temperature:
            problems.append(f"objectives.temperature {self.temperature} must be at least temperature_min {self.temperature_min} > 0")
        if not 0 < self.mask_ratio_min <= self.mask_ratio_max < 1:
            problems.append(
                f"objectives.mask_ratio_min {self.mask_ratio_min} and mask_ratio_max {self.mask_ratio_max} must rise within (0, 1)"
            )
        if not self.mask_span >= 1:
            problems.append(f"objectives.mask_span {self.mask_span} must be at least 1")
        if not 0 < self.denoise_rows <= 1:
            problems.append(f"objectives.denoise_rows {self.denoise_rows} must lie in (0, 1]")
        refuse(problems)


@dataclass(kw_only=True)
class DataSettings:
    """What of the corpus is trained on, and in which batches."""

    __pydantic_config__ = STRICT

    space: Space = "semantic"
    """What is read and predicted: semantic vectors, learned codes (corpora of --residual learned), or both side by side."""
    residual_dims: int | None = None
    """The first so many dims of the learned codes; None = all that the corpus holds."""
    batch_sentences: int = 2048
    """Sentences of a batch, padding included: rows × context."""
    held_out_fraction: float = 0.05
    """Share of the documents (by the hash of their id) that is never trained on."""
    limit_documents: int | None = None
    """Train on so many training documents only (drawn in a fixed random order), for curves against data; None = all."""
    eval_sentences: int = 4096
    """Held-out sentences that the evaluations during training use."""
    context_dropout: float = 0.0
    """Probability that a sentence of the context is hidden from the transformer (not from the anchor) in training."""
    noise: float = 0.0
    """Standard deviation of the Gaussian noise added to the transformer's input in training, in the normaliser's units."""

    def __post_init__(self) -> None:
        problems = []
        if self.batch_sentences < 2 or self.eval_sentences < 2:
            problems.append(f"data.batch_sentences {self.batch_sentences} and data.eval_sentences {self.eval_sentences} must be at least 2")
        if not 0 < self.held_out_fraction < 1:
            problems.append(f"data.held_out_fraction {self.held_out_fraction} must lie between 0 and 1")
        if self.residual_dims is not None and (self.residual_dims < 1 or self.space == "semantic"):
            problems.append(f"data.residual_dims {self.residual_dims} must be at least 1, and belongs to a data.space with residual")
        if self.limit_documents is not None and self.limit_documents < 1:
            problems.append(f"data.limit_documents {self.limit_documents} must be at least 1 (or None for all)")
        if not 0 <= self.context_dropout < 1 or not self.noise >= 0:
            problems.append(f"data.context_dropout {self.context_dropout} must lie in [0, 1) and data.noise {self.noise} not be negative")
        refuse(problems)


@dataclass(kw_only=True)
class PretrainSettings(TrainingSettings):
    """A whole pretraining: `configs/latent-*.yaml`."""

    __pydantic_config__ = STRICT

    model: ModelSettings = field(default_factory=ModelSettings)
    """The latent transformer."""
    objectives: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    """The weighted sum that is trained."""
    data: DataSettings = field(default_factory=DataSettings)
    """Batches and the held-out split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.batch_sentences < self.model.context:
            refuse([f"data.batch_sentences {self.data.batch_sentences} is less than one row of model.context {self.model.context}"])
        for name in ("words", "text_lm"):
            if getattr(self.objectives, name) and self.data.space == "residual":
                refuse([f"objectives.{name} reads semantic vectors, and data.space residual has none; take semantic+residual"])
        if self.objectives.heads_ahead > self.model.context - 2:
            beyond, context = self.objectives.ahead_sentences, self.model.context
            refuse([f"objectives.ahead_sentences {beyond}: model.context {context} holds at most {context - 2} sentences beyond the next"])
        if (self.model.sampler == "none") != (self.objectives.sampler == 0):
            head, weight = self.model.sampler, self.objectives.sampler
            refuse([f"model.sampler {head} and objectives.sampler {weight}: a head needs a weight, and a weight a head"])
