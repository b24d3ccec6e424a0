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
from lsm.decode.adapter import AdapterHome, PrefixAdapter, spoken_before
from lsm.decode.card import adapter_card
from lsm.decode.reading import LengthBatches, TokenizedSentences
from lsm.decode.settings import DecoderSettings
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora
from lsm.lm.loss import frozen_logsumexp
from lsm.training.loop import step_generator
from lsm.training.task import Task


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

    The lexical stage fits, for one random position of each sentence, the distribution of the tokens still to come (nearer ones count more)
    by softmax(E·lift + log unigram frequency): the lift learns what the sentence adds to its language, and costs one product with the
    output layer. The prefix stage is the cross-entropy of the whole sentence, first token to end token, with noise on the vectors.
    """

    name = "prefix adapter"

    def __init__(self, corpus: Corpus, lm: FrozenLM, settings: DecoderSettings, *, seed: int, start_from: PrefixAdapter | None = None) -> None:
        self.corpus, self.lm, self.settings, self.seed = corpus, lm, settings, seed
        reading = settings.reading
        train, held_out = split_documents(corpus.doc_ids, reading.held_out_fraction)
        if not len(held_out):
            raise UserError(f"corpus {corpus.path} has one document: none can be held out; encode at least two")
        self.sentences = TokenizedSentences(corpus, train, lm.tokens, max_tokens=reading.max_tokens, limit=reading.max_sentences)
        self.held_out = TokenizedSentences(corpus, held_out, lm.tokens, max_tokens=reading.max_tokens)
        home = AdapterHome(
            encoder=corpus.encoder, lm=lm.fingerprint(), dim=corpus.dim, lm_width=lm.width, embedding_rms=round(lm.embedding_rms(), 6)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = PrefixAdapter(settings.adapter, home).to(lm.device)
        if start_from is not None:
            self._start_from(start_from)
        if settings.adapter.lora_rank:
            self.module.lora = attach_lora(lm, settings.adapter.lora_rank)
        self.batches = LengthBatches(
            self.sentences.lengths_N,
            extra_positions=settings.adapter.prefix_length - 1,
            budget_positions=reading.batch_positions,
            seed=seed,
        )
        counts_V = self.sentences.token_counts(len(lm.head_VH)) + 0.1
        self._log_frequency_V = (counts_V / counts_V.sum()).log().to(lm.device)
        self._n_lexical = settings.lexical_stage.steps * settings.accumulate if settings.adapter.lexical else 0
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
        """Nats per token; `prefix_loss` or `lexical_loss` in the log says which stage it is."""
        if batch.position_B is not None:
            loss = self._lexical_loss(batch)
            return loss, {"lexical_loss": loss.detach()}
        loss_B, lengths_B = self._sentence_losses(batch, batch.z_BD)
        loss = (loss_B * lengths_B).sum() / lengths_B.sum()
        return loss, {"prefix_loss": loss.detach()}

    def evaluate(self) -> dict[str, float]:
        """Held-out nats per token with the right vector, with another sentence's vector and with a vector of zeros."""
        reading = self.settings.reading
        chosen = permutation(len(self.held_out), 0, 0)[: reading.evaluation_sentences]
        order_N = chosen[np.argsort(self.held_out.lengths_N[chosen], kind="stable")]
        shuffled_N = np.roll(order_N, len(order_N) // 2)
        totals = dict.fromkeys(("loss", "loss_shuffled_vector", "loss_zero_vector", "lexical_loss"), 0.0)
        n_tokens = 0
        generator = torch.Generator().manual_seed(0)
        for start in range(0, len(order_N), 32):
            batch = self._gather(self.held_out, order_N[start : start + 32], lexical=True, generator=generator)
            others_BD = self.held_out.vectors(shuffled_N[start : start + 32]).to(self.lm.device)
            for name, z_BD in (("loss", batch.z_BD), ("loss_shuffled_vector", others_BD), ("loss_zero_vector", torch.zeros_like(batch.z_BD))):
                loss_B, lengths_B = self._sentence_losses(batch, z_BD)
                totals[name] += float((loss_B * lengths_B).sum())
            n_tokens += int(lengths_B.sum())
            if self._n_lexical:
                totals["lexical_loss"] += float(self._lexical_loss(batch)) * int(lengths_B.sum())
        self._scores = {name: round(value / n_tokens, 4) for name, value in totals.items() if name != "lexical_loss" or self._n_lexical}
        return self._scores

    def save_final(self, folder: Path) -> None:
        """The adapter folder that `--adapter` takes."""
        card = adapter_card(self.module, self.settings, n_sentences=len(self.sentences), scores=self._scores)
        self.module.save_pretrained(folder, card=card)

    def fingerprint(self) -> dict[str, Any]:
        return {"corpus": self.corpus.fingerprint, "encoder": self.corpus.encoder, "lm": self.lm.fingerprint()}

    def plan(self) -> list[str]:
        settings, sentences = self.settings, self.sentences
        positions = float(np.mean(sentences.lengths_N)) + settings.adapter.prefix_length - 1
        seen = (settings.steps * settings.accumulate - self._n_lexical) * len(sentences) / self.batches.n_batches
        return [
            f"data        {len(sentences):,} sentences, {sentences.n_left_out:,} over {settings.reading.max_tokens} tokens left out, "
            f"{len(self.held_out):,} held out; {np.mean(sentences.lengths_N):.1f} tokens each",
            f"stages      {settings.lexical_stage.steps if self._n_lexical else 0:,} lexical steps of {settings.lexical_stage.batch_sentences} "
            f"sentences, then {seen:,.0f} sentences through the LM ({seen / len(sentences):.2f} epochs, {positions:.0f} positions each)",
            f"frozen LM   {self.lm.name}, {str(self.lm.dtype).removeprefix('torch.')}",
        ]

    def describe_batch(self, batch: SentenceBatch) -> str:
        return f"corpus rows {self.sentences.rows_N[batch.numbers_B][:8].tolist()} …"

    def units(self, batch: SentenceBatch) -> tuple[int, str]:
        return len(batch.numbers_B), "sentences"

    def _sentence_losses(self, batch: SentenceBatch, z_BD: Tensor) -> tuple[Tensor, Tensor]:
        """loss_B (nats per token) and lengths_B."""
        trunk_BF = self.module.trunk(z_BD)
        prefix_BPH = self.module.prefix(trunk_BF)
        spoken_BTH = spoken_before(self.lm.embed(batch.ids_BT))
        bias_BTH = self.module.bias(trunk_BF, spoken_BTH, torch.arange(batch.ids_BT.shape[1], device=self.lm.device))
        with torch.autocast(self.lm.device.type, enabled=False):  # the LM has its own dtype
            loss_B = self.lm.prefix_loss(prefix_BPH, batch.ids_BT, batch.mask_BT, bias_BTH)
        return loss_B, batch.mask_BT.sum(1)

    def _lexical_loss(self, batch: SentenceBatch) -> Tensor:
        assert batch.position_B is not None
        place_T = torch.arange(batch.ids_BT.shape[1], device=self.lm.device)
        position_B1 = batch.position_B[:, None]
        embedded_BTH = self.lm.embed(batch.ids_BT).float()
        spoken_BH = (embedded_BTH * (place_T < position_B1)[..., None]).sum(1)
        weight_BT = torch.exp(-(place_T - position_B1) / self.settings.lexical_stage.horizon_tokens)
        weight_BT = weight_BT * ((place_T >= position_B1) & batch.mask_BT)
        weight_BT = weight_BT / weight_BT.sum(1, keepdim=True)
        lift_BH = self.module.bias(self.module.trunk(batch.z_BD), spoken_BH[:, None], position_B1)
        assert lift_BH is not None
        lift_BH = lift_BH[:, 0].float()
        with torch.autocast(self.lm.device.type, enabled=False):
            target_BH = torch.einsum("bt,bth->bh", weight_BT, self.lm.head_VH[batch.ids_BT].float())
            offset_B = (weight_BT * self._log_frequency_V[batch.ids_BT]).sum(1)
            return (frozen_logsumexp(lift_BH, self.lm.head_VH, self._log_frequency_V) - (lift_BH * target_BH).sum(1) - offset_B).mean()

    def _gather(self, source: TokenizedSentences, numbers_B: np.ndarray, *, lexical: bool, generator: torch.Generator) -> SentenceBatch:
        ids_BT, mask_BT = source.ids(numbers_B)
        position_B = None
        if lexical:
            position_B = (torch.rand(len(numbers_B), generator=generator) * mask_BT.sum(1)).long().to(self.lm.device)
        device = self.lm.device
        return SentenceBatch(numbers_B, source.vectors(numbers_B).to(device), ids_BT.to(device), mask_BT.to(device), position_B)

    def _start_from(self, adapter: PrefixAdapter) -> None:
        if adapter.settings != self.settings.adapter or adapter.home.dim != self.module.home.dim:
            raise UserError(f"the adapter to start from has another shape ({adapter.settings}); use the config that it was trained with")
        self.module.load_state_dict({n: v for n, v in adapter.state_dict().items() if not n.startswith("lora.")})


def add_noise(z_BD: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """√(1−α)·z + √α·ε with ε of a vector's expected length and α ~ U(0, most) for each row; z of unit length."""
    z_BD = torch.nn.functional.normalize(z_BD, dim=-1)
    alpha_B1 = torch.rand(len(z_BD), 1, generator=generator) * most
    noise_BD = torch.randn(z_BD.shape, generator=generator) / z_BD.shape[1] ** 0.5
    return (1 - alpha_B1).sqrt() * z_BD + alpha_B1.sqrt() * noise_BD
