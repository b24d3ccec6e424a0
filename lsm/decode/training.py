"""Training of a prefix adapter: a cheap lexical stage, then full-sequence cross-entropy through the frozen LM.

Shape letters: B rows, D vector width, T tokens, P prefix positions, H hidden width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import permutation, split_documents
from lsm.decode.adapter import AdapterHome, Prefix, PrefixAdapter, sentence_loss
from lsm.decode.card import adapter_card
from lsm.decode.reading import LengthBatches, TokenizedSentences
from lsm.decode.settings import DecoderSettings
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora
from lsm.lm.loss import frozen_logsumexp
from lsm.training.loop import step_generator
from lsm.training.task import Task

_RARE = 1e-3


@dataclass(frozen=True)
class SentenceBatch:
    """Vectors and tokens of some sentences, on the device."""

    numbers_B: np.ndarray
    z_BD: Tensor
    ids_BT: Tensor
    mask_BT: Tensor
    position_B: Tensor | None
    """Lexical stage: the token of each row that is trained; None in the prefix stage."""


class PrefixTask(Task):
    """Trains `PrefixAdapter` on a corpus's sentences; the first `lexical_stage.steps` steps never run the LM.

    The lexical stage fits two distributions over words, each softmax(E·lift + log frequency), so that the lift learns what the sentence
    adds to its language at the cost of one product with the output layer: for a random position of each sentence the tokens still to
    come, nearer ones counting more; for each prefix position the content words of its stretch of the sentence. The prefix stage is the
    cross-entropy of the whole sentence, first token to end token, with noise on the vectors.
    """

    name = "prefix adapter"

    def __init__(
        self, corpus: Corpus, lm: FrozenLM, settings: DecoderSettings, *, seed: int, start_from: PrefixAdapter | None = None
    ) -> None:
        self.corpus, self.lm, self.settings, self.seed = corpus, lm, settings, seed
        reading = settings.reading
        train, held_out = split_documents(corpus.doc_ids, reading.held_out_fraction)
        if not len(held_out):
            raise UserError(f"corpus {corpus.path} has one document: none can be held out; encode at least two")
        self.sentences = TokenizedSentences(corpus, train, lm.tokens, max_tokens=reading.max_tokens, limit=reading.max_sentences)
        self.held_out = TokenizedSentences(corpus, held_out, lm.tokens, max_tokens=reading.max_tokens)
        home = AdapterHome.of(lm, encoder=corpus.encoder, dim=corpus.dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adapter = self.module = PrefixAdapter(settings.adapter, home).to(lm.device)
            if settings.adapter.lora_rank:
                self.adapter.lora = attach_lora(lm, settings.adapter.lora_rank)
        if start_from is not None:
            self.adapter.start_from(start_from)
        self.batches = LengthBatches(
            self.sentences.lengths_N,
            extra_positions=settings.adapter.prefix_length - 1,
            budget_positions=reading.batch_positions,
            seed=seed,
        )
        frequency_V, self._content_V, offset_V = content_weights(self.sentences.token_counts(len(lm.head_VH)), lm.device)
        self._log_frequency_V = frequency_V.log()
        if settings.adapter.soft_words:
            self.adapter.word_offset_V.copy_(offset_V)
        self._n_lexical = settings.lexical_stage.steps * settings.accumulate
        self._scores: dict[str, float] = {}

    def batch(self, index: int) -> SentenceBatch:
        """Batch `index`: uniformly drawn sentences in the lexical stage, one length bucket in the prefix stage."""
        generator = step_generator(self.seed, index)
        lexical = index < self._n_lexical
        if lexical:
            size = self.settings.lexical_stage.batch_sentences
            numbers_B = torch.randint(len(self.sentences), (size,), generator=generator).numpy()
        else:
            numbers_B = self.batches.numbers(index - self._n_lexical)
        batch = self._gather(self.sentences, numbers_B, lexical=lexical, generator=generator)
        noisy_BD = add_noise(batch.z_BD.cpu(), self.settings.reading.noise, generator).to(self.lm.device)
        return SentenceBatch(numbers_B, noisy_BD, batch.ids_BT, batch.mask_BT, batch.position_B)

    def loss(self, batch: SentenceBatch) -> tuple[Tensor, dict[str, Any]]:
        """Nats per token; which parts the log shows says which stage it is."""
        if batch.position_B is not None:
            parts = self._lexical_losses(batch)
        else:
            loss_B, lengths_B, word_loss = self._sentence_losses(batch, batch.z_BD)
            parts = {"prefix_loss": (loss_B * lengths_B).sum() / lengths_B.sum()} | ({} if word_loss is None else {"word_loss": word_loss})
        loss = torch.stack(list(parts.values())).sum()
        return loss, {name: value.detach() for name, value in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Held-out nats per token with the right vector, with another sentence's vector and with a vector of zeros."""
        reading = self.settings.reading
        chosen = permutation(len(self.held_out), 0, 0)[: reading.evaluation_sentences]
        order_N = chosen[np.argsort(self.held_out.lengths_N[chosen], kind="stable")]
        shuffled_N = np.roll(order_N, len(order_N) // 2)
        totals = dict.fromkeys(("loss", "loss_shuffled_vector", "loss_zero_vector"), 0.0)
        n_tokens = 0
        generator = torch.Generator().manual_seed(0)
        for start in range(0, len(order_N), 32):
            batch = self._gather(self.held_out, order_N[start : start + 32], lexical=True, generator=generator)
            others_BD = self.held_out.vectors(shuffled_N[start : start + 32]).to(self.lm.device)
            lengths_B = batch.mask_BT.sum(1)
            inputs = {"loss": batch.z_BD, "loss_shuffled_vector": others_BD, "loss_zero_vector": torch.zeros_like(batch.z_BD)}
            for name, z_BD in inputs.items():
                totals[name] += float((self._sentence_losses(batch, z_BD)[0] * lengths_B).sum())
            for name, value in self._lexical_losses(batch).items():
                totals[name] = totals.get(name, 0.0) + float(value) * int(lengths_B.sum())
            n_tokens += int(lengths_B.sum())
        self._scores = {name: round(value / n_tokens, 4) for name, value in totals.items()}
        return self._scores

    def save_final(self, folder: Path) -> None:
        """The adapter folder that `--adapter` takes."""
        card = adapter_card(self.adapter, self.settings, n_sentences=len(self.sentences), scores=self._scores)
        self.adapter.save_pretrained(folder, card=card)

    def fingerprint(self) -> dict[str, Any]:
        return {"corpus": self.corpus.fingerprint, "encoder": self.corpus.encoder, "lm": self.lm.fingerprint()}

    def plan(self) -> list[str]:
        settings, sentences = self.settings, self.sentences
        positions = float(np.mean(sentences.lengths_N)) + settings.adapter.prefix_length - 1
        seen = (settings.steps * settings.accumulate - self._n_lexical) * len(sentences) / self.batches.n_batches
        return [
            f"data        {len(sentences):,} sentences, {sentences.n_left_out:,} over {settings.reading.max_tokens} tokens left out, "
            f"{len(self.held_out):,} held out; {np.mean(sentences.lengths_N):.1f} tokens each",
            f"stages      {settings.lexical_stage.steps:,} lexical steps of {settings.lexical_stage.batch_sentences} "
            f"sentences, then {seen:,.0f} sentences through the LM ({seen / len(sentences):.2f} epochs, {positions:.0f} positions each)",
            f"frozen LM   {self.lm.name}, {str(self.lm.dtype).removeprefix('torch.')}",
        ]

    def describe_batch(self, batch: SentenceBatch) -> str:
        return f"corpus rows {self.sentences.rows_N[batch.numbers_B][:8].tolist()} …"

    def units(self, batch: SentenceBatch) -> dict[str, float]:
        return {"sentences": len(batch.numbers_B)}

    def _sentence_losses(self, batch: SentenceBatch, z_BD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """loss_B (nats per token), lengths_B, and the loss of the prefix's words where it has any."""
        loss_B, prefix = sentence_loss(self.adapter, self.lm, z_BD, batch.ids_BT, batch.mask_BT)
        return loss_B, batch.mask_BT.sum(1), self._word_loss(batch, prefix)

    def _lexical_losses(self, batch: SentenceBatch) -> dict[str, Tensor]:
        """What the lexical stage trains: the lift of the tokens to come, and the words of the prefix on as many rows as cost the same."""
        trunk_BF = self.adapter.trunk(batch.z_BD)
        losses = {}
        if self.adapter.lexical_head is not None:
            losses["lexical_loss"] = self._lift_loss(batch, trunk_BF)
        if self.adapter.word_head is not None:
            some = slice(0, max(1, len(trunk_BF) // self.settings.adapter.prefix_length))
            few = SentenceBatch(batch.numbers_B[some], batch.z_BD[some], batch.ids_BT[some], batch.mask_BT[some], None)
            word_loss = self._word_loss(few, self.adapter.prefix(trunk_BF[some], self.lm))
            assert word_loss is not None
            losses["word_loss"] = word_loss
        return losses

    def _lift_loss(self, batch: SentenceBatch, trunk_BF: Tensor) -> Tensor:
        assert batch.position_B is not None
        place_T = torch.arange(batch.ids_BT.shape[1], device=self.lm.device)
        position_B1 = batch.position_B[:, None]
        weight_BT = torch.exp(-(place_T - position_B1) / self.settings.lexical_stage.horizon_tokens)
        weight_BT = weight_BT * ((place_T >= position_B1) & batch.mask_BT)
        spoken_BH = _weighted_sums((place_T < position_B1)[:, None].float(), self.lm.embed(batch.ids_BT))
        lift_BTH = self.adapter.bias(trunk_BF, spoken_BH, position_B1)
        assert lift_BTH is not None
        lift_BH = lift_BTH[:, 0].float()
        with torch.autocast(self.lm.device.type, enabled=False):
            logsumexp_B = frozen_logsumexp(lift_BH, self.lm.head_VH, self._log_frequency_V)
        return bag_loss(self.lm, batch.ids_BT, weight_BT[:, None], lift_BH[:, None], logsumexp_B[:, None], self._log_frequency_V)

    def _word_loss(self, batch: SentenceBatch, prefix: Prefix) -> Tensor | None:
        if prefix.lift_BPH is None:
            return None
        return word_loss(self.lm, prefix, batch.ids_BT, batch.mask_BT, self._content_V, self.adapter.word_offset_V)

    def _gather(self, source: TokenizedSentences, numbers_B: np.ndarray, *, lexical: bool, generator: torch.Generator) -> SentenceBatch:
        ids_BT, mask_BT = source.ids(numbers_B)
        position_B = None
        if lexical:
            position_B = (torch.rand(len(numbers_B), generator=generator) * mask_BT.sum(1)).long().to(self.lm.device)
        device = self.lm.device
        return SentenceBatch(numbers_B, source.vectors(numbers_B).to(device), ids_BT.to(device), mask_BT.to(device), position_B)


def add_noise(z_BD: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """√(1−α)·z + √α·ε with ε of a vector's expected length and α ~ U(0, most) for each row; z of unit length."""
    z_BD = torch.nn.functional.normalize(z_BD, dim=-1)
    alpha_B1 = torch.rand(len(z_BD), 1, generator=generator) * most
    noise_BD = torch.randn(z_BD.shape, generator=generator) / z_BD.shape[1] ** 0.5
    return (1 - alpha_B1).sqrt() * z_BD + alpha_B1.sqrt() * noise_BD


def word_loss(lm: FrozenLM, prefix: Prefix, ids_BT: Tensor, mask_BT: Tensor, content_V: Tensor, offset_V: Tensor) -> Tensor | None:
    """Cross-entropy of each prefix position's words against the content words of its stretch of the sentence; None without soft words."""
    if prefix.lift_BPH is None or prefix.logsumexp_BP is None:
        return None
    n_positions = prefix.lift_BPH.shape[1]
    lengths_B1 = mask_BT.sum(1, keepdim=True) - 1  # without the end token
    place_BT = (torch.arange(ids_BT.shape[1], device=lm.device) + 0.5) / lengths_B1.clamp(min=1)
    centre_P = (torch.arange(n_positions, device=lm.device) + 0.5) / n_positions
    near_BPT = torch.exp(-(((place_BT[:, None] - centre_P[:, None]) * n_positions) ** 2))
    inside_BT = torch.arange(ids_BT.shape[1], device=lm.device) < lengths_B1
    weight_BPT = near_BPT * (inside_BT * content_V[ids_BT])[:, None] + 1e-9 * mask_BT[:, None]
    return bag_loss(lm, ids_BT, weight_BPT, prefix.lift_BPH, prefix.logsumexp_BP, offset_V)


def content_weights(counts_V: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token's count: its frequency, its weight as content (Arora et al. 2017, SIF: what a prefix position shall name is
    content, not function words), and the log of its share of all content, from which soft words start."""
    frequency_V = ((counts_V + 0.1) / (counts_V + 0.1).sum()).to(device)
    content_V = _RARE / (_RARE + frequency_V)
    return frequency_V, content_V, torch.log_softmax(frequency_V.log() + content_V.log(), dim=0)


def bag_loss(lm: FrozenLM, ids_BT: Tensor, weight_BPT: Tensor, lift_BPH: Tensor, logsumexp_BP: Tensor, offset_V: Tensor) -> Tensor:
    """Mean cross-entropy of softmax(E·lift + offset) against each sentence's tokens in the proportions of `weight_BPT`."""
    with torch.autocast(lm.device.type, enabled=False):
        weight_BPT = weight_BPT / weight_BPT.sum(-1, keepdim=True)
        target_BPH = _weighted_sums(weight_BPT, lm.head_VH[ids_BT])
        offset_BP = (weight_BPT * offset_V[ids_BT][:, None]).sum(-1)
        return (logsumexp_BP - (lift_BPH * target_BPH).sum(-1) - offset_BP).mean()


def _weighted_sums(weight_BPT: Tensor, embedded_BTH: Tensor) -> Tensor:
    """Σ_t weight · embedding, [B, P, H] float32."""
    return torch.bmm(weight_BPT.to(embedded_BTH.dtype), embedded_BTH).float()
