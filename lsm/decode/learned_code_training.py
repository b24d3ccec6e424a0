"""Training of a learned code: a cheap stage that reads every token from the code without the LM, then cross-entropy through the LM.

Shape letters: B rows, T tokens, D vector width, K dims of a whole code, C token dims, P prefix positions, H hidden width of the LM,
V vocabulary, N tokens of all rows, R tokens that a sampled softmax runs over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import permutation, split_documents
from lsm.decode.adapter import AdapterHome, PrefixAdapter, spoken_before
from lsm.decode.learned_code import CodeHome, LearnedCode, TokenStates
from lsm.decode.learned_code_card import code_card
from lsm.decode.learned_code_codec import StatesOf, write
from lsm.decode.learned_code_settings import LearnedCodeSettings
from lsm.decode.reading import LengthBatches, TokenizedSentences
from lsm.decode.shipped import SHIPPED, find_adapter
from lsm.decode.training import add_noise, content_weights, word_loss
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora
from lsm.lm.loss import frozen_cross_entropy
from lsm.training.loop import step_generator
from lsm.training.pretrained import weights_sha256
from lsm.training.task import Task


@dataclass(frozen=True)
class CodeBatch:
    """Some sentences, on the device."""

    index: int
    numbers_B: np.ndarray
    z_BD: Tensor
    ids_BT: Tensor
    mask_BT: Tensor
    states: TokenStates | None
    with_lm: bool
    """Which stage it is."""


@dataclass(frozen=True)
class StartAdapter:
    """An adapter to start from, and what it is called where it is a shipped one."""

    adapter: PrefixAdapter
    shipped: dict[str, str] | None
    """Its name and sha256."""

    @classmethod
    def load(cls, name: str, *, encoder: dict[str, Any]) -> StartAdapter:
        """The adapter called `name` (a folder or a shipped one) for vectors of `encoder`."""
        folder = find_adapter(name, encoder=encoder)
        shipped = {"name": folder.name, "sha256": weights_sha256(folder)} if folder.parent.resolve() == SHIPPED.resolve() else None
        return cls(PrefixAdapter.from_pretrained(folder), shipped)


class LearnedCodeTask(Task):
    """Trains `LearnedCode` on a corpus's sentences; the first `token_stage.steps` steps never run the LM.

    Token stage: a sampled softmax over token vectors for every token of every sentence, given the code, the tokens before it and the
    stand-in of the LM; it shapes codebook, bindings and reader, and fits the code's normaliser. LM stage: cross-entropy of the whole
    sentence under the product of LM and code, the normaliser fixed.
    """

    name = "learned code"

    def __init__(
        self,
        corpus: Corpus,
        lm: FrozenLM,
        settings: LearnedCodeSettings,
        *,
        seed: int,
        states_of: StatesOf | None = None,
        state_width: int = 0,
        start_from: StartAdapter | None = None,
    ) -> None:
        """Args:
        states_of: the frozen encoder's token states of texts, `state_width` wide; needed where `code.context_queries` is above 0.
        """
        self.corpus, self.lm, self.settings, self.seed, self.states_of = corpus, lm, settings, seed, states_of
        reading, code = settings.reading, settings.code
        if code.context_queries and states_of is None:
            raise UserError(f"encoder {corpus.encoder.get('name')} gives no token states: set code.context_queries to 0, or use minilm")
        train, held_out = split_documents(corpus.doc_ids, reading.held_out_fraction)
        if not len(held_out):
            raise UserError(f"corpus {corpus.path} has one document: none can be held out; encode at least two")
        self.sentences = TokenizedSentences(corpus, train, lm.tokens, max_tokens=code.max_tokens, limit=reading.max_sentences)
        self.held_out = TokenizedSentences(corpus, held_out, lm.tokens, max_tokens=code.max_tokens)
        home = AdapterHome.of(lm, encoder=corpus.encoder, dim=corpus.dim)
        self._frequency_V, self._content_V, self._offset_V = content_weights(self.sentences.token_counts(len(lm.head_VH)), lm.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = self._adapter(start_from, home)
            shipped = start_from.shipped if start_from is not None and settings.freeze_adapter else None
            self.code = LearnedCode(code, adapter, CodeHome(home, state_width if code.context_queries else 0, shipped))
            if code.lora_rank:
                self.code.lora = attach_lora(lm, code.lora_rank)
        self.module = self.code.to(lm.device)
        self.code.fit_embeddings(lm)
        self.batches = LengthBatches(
            self.sentences.lengths_N,
            extra_positions=adapter.settings.prefix_length - 1,
            budget_positions=reading.batch_positions,
            seed=seed,
        )
        self._started_from = start_from.adapter.sha256() if start_from is not None else None
        self._n_token_stage = settings.token_stage.steps * settings.accumulate
        self._scores: dict[str, float] = {}

    def batch(self, index: int) -> CodeBatch:
        """Batch `index`: uniformly drawn sentences in the token stage, one length bucket in the LM stage."""
        generator = step_generator(self.seed, index)
        with_lm = index >= self._n_token_stage
        if with_lm:
            numbers_B = self.batches.numbers(index - self._n_token_stage)
        else:
            numbers_B = torch.randint(len(self.sentences), (self.settings.token_stage.batch_sentences,), generator=generator).numpy()
        batch = self._gather(self.sentences, numbers_B, index, with_lm=with_lm, states=with_lm or self.settings.token_stage.context)
        noisy_BD = add_noise(batch.z_BD.cpu(), self.settings.disturbance.noise, generator).to(self.lm.device)
        return CodeBatch(index, numbers_B, noisy_BD, batch.ids_BT, batch.mask_BT, batch.states, with_lm)

    def loss(self, batch: CodeBatch) -> tuple[Tensor, dict[str, Any]]:
        """Nats per token, and the parts for the log."""
        bound_BTK = self.code.bound(self.lm, batch.ids_BT, batch.mask_BT)
        code_BK, keep_BK = self._disturbed(self.code.code(bound_BTK, batch.states, fit=not batch.with_lm))
        others_BT = self._some_replaced(batch.ids_BT)
        written_BTK = self.code.written(self.code.bound(self.lm, others_BT, batch.mask_BT))
        query_BTC = self.code.query(code_BK, written_BTK, keep_BK)
        if batch.with_lm:
            loss_B, word_loss = self._sentence_losses(batch, code_BK, keep_BK, query_BTC)
            lengths_B = batch.mask_BT.sum(1)
            parts = {"lm_loss": (loss_B * lengths_B).sum() / lengths_B.sum()} | ({} if word_loss is None else {"word_loss": word_loss})
        else:
            embedded_BTH = self.lm.head_VH[others_BT].float() - self.code.centre_H
            parts = {"token_loss": self._token_loss(batch, query_BTC + self.code.stand_in(embedded_BTH / self.lm_scale))}
        contrast = self.settings.contrast
        if contrast.weight and self._epoch(batch.index) >= contrast.recon_warmup_epochs:
            parts["contrast_loss"] = contrast.weight * self._contrast_loss(batch)
        loss = torch.stack(list(parts.values())).sum()
        return loss, {name: value.detach() for name, value in parts.items()}

    @property
    def lm_scale(self) -> float:
        """Size of the LM's embeddings, by which the stand-in's inputs are divided."""
        return self.code.home.adapter.embedding_rms

    def evaluate(self) -> dict[str, float]:
        """Held-out nats per token and, written freely, exact matches for each number of dims; and with codes that are wrong or zero."""
        chosen = permutation(len(self.held_out), 0, 0)[: self.settings.reading.evaluation_sentences]
        batch = self._gather(
            self.held_out, chosen[np.argsort(self.held_out.lengths_N[chosen], kind="stable")], 0, with_lm=True, states=True
        )
        bound_BTK = self.code.bound(self.lm, batch.ids_BT, batch.mask_BT)
        code_BK, written_BTK = self.code.code(bound_BTK, batch.states), self.code.written(bound_BTK)
        lengths_B = batch.mask_BT.sum(1)
        dims, scores = self.settings.code.dims, {}

        def nats(some_BK: Tensor, k: int) -> float:
            keep_BK = self.code.keep(torch.full_like(lengths_B, k))
            query_BTC = self.code.query(some_BK, written_BTK, keep_BK)
            return float((self._sentence_losses(batch, some_BK, keep_BK, query_BTC)[0] * lengths_B).sum() / lengths_B.sum())

        scores["loss"] = nats(code_BK, dims)
        scores["loss_shuffled_code"] = nats(code_BK.roll(len(code_BK) // 2, 0), dims)
        scores["loss_zero_code"] = nats(torch.zeros_like(code_BK), dims)
        for k in self.settings.code.lengths:
            scores[f"loss_{k}"] = nats(code_BK, k)
            written = write(self.lm, self.code, batch.z_BD, code_BK, self.code.keep(torch.full_like(lengths_B, k)))
            true = [ids[: length - 1] for ids, length in zip(batch.ids_BT.tolist(), lengths_B.tolist(), strict=True)]
            scores[f"exact_{k}"] = sum(ids == row for (_, ids), row in zip(written, true, strict=True)) / len(true)
        scores["n_evaluated"] = len(chosen)
        self._scores = {name: round(value, 4) for name, value in scores.items()}
        return self._scores

    def save_final(self, folder: Path) -> None:
        """The folder that `LearnedCode.from_pretrained` reads."""
        card = code_card(self.code, self.settings, n_sentences=len(self.sentences), scores=self._scores)
        self.code.save_pretrained(folder, card=card)

    def fingerprint(self) -> dict[str, Any]:
        home = {"corpus": self.corpus.fingerprint, "encoder": self.corpus.encoder, "lm": self.lm.fingerprint()}
        return home | {"started_from": self._started_from}

    def plan(self) -> list[str]:
        settings, sentences = self.settings, self.sentences
        stage = settings.token_stage
        through = (settings.steps * settings.accumulate - self._n_token_stage) * len(sentences) / self.batches.n_batches
        return [
            f"data        {len(sentences):,} sentences, {sentences.n_left_out:,} over {settings.code.max_tokens} tokens left out, "
            f"{len(self.held_out):,} held out; {np.mean(sentences.lengths_N):.1f} tokens each",
            f"stages      {stage.steps:,} token steps of {stage.batch_sentences} sentences "
            f"({self._n_token_stage * stage.batch_sentences / len(sentences):.1f} epochs), then {through:,.0f} sentences through the LM",
            f"frozen LM   {self.lm.name}, {str(self.lm.dtype).removeprefix('torch.')}",
        ]

    def describe_batch(self, batch: CodeBatch) -> str:
        return f"corpus rows {self.sentences.rows_N[batch.numbers_B][:8].tolist()} …"

    def units(self, batch: CodeBatch) -> dict[str, float]:
        return {"sentences": len(batch.numbers_B)}

    def _token_loss(self, batch: CodeBatch, query_BTC: Tensor) -> Tensor:
        """Cross-entropy under softmax(token vectors · query + log frequency), its sum estimated from the batch's tokens and random ones.

        Each of these stands for 1/probability of being among them (importance sampling, Bengio & Senécal 2008).
        """
        target_N, query_NC = batch.ids_BT[batch.mask_BT], query_BTC[batch.mask_BT]
        present, place_N = target_N.unique(return_inverse=True)
        vocabulary, n_drawn = len(self.lm.head_VH), self.settings.token_stage.negatives
        drawn = torch.randint(vocabulary, (n_drawn,), device=target_N.device).unique()
        among_R = torch.cat([present, drawn[~torch.isin(drawn, present)]])
        frequency_R = self._frequency_V[among_R]
        missed_R = (1 - frequency_R) ** len(target_N) * (1 - 1 / vocabulary) ** n_drawn
        logits_NR = query_NC @ self.code.token_vectors(self.lm, among_R).T
        logits_NR = logits_NR.float() + frequency_R.log() - torch.log1p(-missed_R)
        return nn.functional.cross_entropy(logits_NR, place_N)

    def _sentence_losses(self, batch: CodeBatch, code_BK: Tensor, keep_BK: Tensor, query_BTC: Tensor) -> tuple[Tensor, Tensor | None]:
        """loss_B (nats per token) under the product of LM and code, and the loss of the prefix's words where it has any."""
        code, lm = self.code, self.lm
        trunk_BF = code.trunk(batch.z_BD, code_BK, keep_BK)
        prefix = code.prefix(trunk_BF, lm)
        bias_BTH = code.adapter.bias(trunk_BF, spoken_before(lm.embed(batch.ids_BT)), torch.arange(batch.ids_BT.shape[1], device=lm.device))
        with torch.autocast(lm.device.type, enabled=False):  # the LM has its own dtype
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.settings.through_lm):
                inputs_BTH = torch.cat([prefix.prefix_BPH.to(lm.dtype), lm.embed(batch.ids_BT[:, :-1])], dim=1)
                hidden_BTH = lm.final_hidden(inputs_BTH)[:, prefix.prefix_BPH.shape[1] - 1 :].float()
            if bias_BTH is not None:
                hidden_BTH = hidden_BTH + bias_BTH.float()
            with torch.no_grad():
                table_VC = code.token_vectors(lm, torch.arange(len(lm.head_VH), device=lm.device))
                head = torch.cat([lm.head_VH, table_VC.to(lm.dtype)], dim=1)
            both_NX = torch.cat([hidden_BTH, query_BTC.float()], dim=-1)[batch.mask_BT]
            loss_N = frozen_cross_entropy(both_NX, head, batch.ids_BT[batch.mask_BT])
        lengths_B = batch.mask_BT.sum(1)
        row_N = torch.repeat_interleave(torch.arange(len(lengths_B), device=lm.device), lengths_B)
        loss_B = torch.zeros(len(lengths_B), device=lm.device).index_add(0, row_N, loss_N) / lengths_B
        return loss_B, word_loss(lm, prefix, batch.ids_BT, batch.mask_BT, self._content_V, code.adapter.word_offset_V)

    def _contrast_loss(self, batch: CodeBatch) -> Tensor:
        """InfoNCE (van den Oord et al. 2018) of two views with tokens left out and noise, temperature annealed geometrically."""
        contrast = self.settings.contrast
        progress = batch.index / max(1, self.settings.steps * self.settings.accumulate - 1)
        tau = contrast.initial_tau * (contrast.final_tau / contrast.initial_tau) ** progress
        views = []
        for _ in range(2):
            stay_BT = torch.rand(batch.ids_BT.shape, device=self.lm.device) >= self.settings.disturbance.token_dropout
            view_BK = self.code.code(self.code.bound(self.lm, batch.ids_BT, batch.mask_BT & stay_BT), batch.states)
            views.append(nn.functional.normalize(self._disturbed(view_BK)[0], dim=-1))
        logits_BB = views[0] @ views[1].T / tau
        own_B = torch.arange(len(logits_BB), device=logits_BB.device)
        return 0.5 * (nn.functional.cross_entropy(logits_BB, own_B) + nn.functional.cross_entropy(logits_BB.T, own_B))

    def _disturbed(self, code_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Codes with noise, some of it another sentence's code, and which dims of them are kept."""
        disturbance, n = self.settings.disturbance, len(code_BK)
        alpha_B1 = torch.rand(n, 1, device=code_BK.device) * disturbance.noise
        noise_BK = torch.randn_like(code_BK)
        from_other_B1 = torch.rand(n, 1, device=code_BK.device) < disturbance.interpolation
        noise_BK = torch.where(from_other_B1, code_BK.detach().roll(1, 0), noise_BK)
        lengths = torch.tensor(self.settings.code.lengths, device=code_BK.device)
        keep_BK = self.code.keep(lengths[torch.randint(len(lengths), (n,), device=code_BK.device)])
        if disturbance.latent_dropout:
            keep_BK = keep_BK * (torch.rand_like(keep_BK) >= disturbance.latent_dropout)
        return (1 - alpha_B1).sqrt() * code_BK + alpha_B1.sqrt() * noise_BK, keep_BK

    def _some_replaced(self, ids_BT: Tensor) -> Tensor:
        """Tokens with up to `token_dropout` of a row replaced: what is written freely has errors in it."""
        share_B1 = torch.rand(len(ids_BT), 1, device=ids_BT.device) * self.settings.disturbance.token_dropout
        replaced_BT = torch.rand(ids_BT.shape, device=ids_BT.device) < share_B1
        return torch.where(replaced_BT, torch.randint(len(self.lm.head_VH), ids_BT.shape, device=ids_BT.device), ids_BT)

    def _epoch(self, index: int) -> float:
        token_stage = min(index, self._n_token_stage) * self.settings.token_stage.batch_sentences / len(self.sentences)
        return token_stage + max(0, index - self._n_token_stage) / self.batches.n_batches

    def _gather(self, source: TokenizedSentences, numbers_B: np.ndarray, index: int, *, with_lm: bool, states: bool) -> CodeBatch:
        ids_BT, mask_BT = (x.to(self.lm.device) for x in source.ids(numbers_B))
        found = None
        if states and self.code.context is not None and self.states_of is not None:
            texts = [self.lm.tokens.decode(row[: int(n) - 1]) for row, n in zip(ids_BT.tolist(), mask_BT.sum(1).tolist(), strict=True)]
            found = TokenStates(*(x.to(self.lm.device) for x in self.states_of(texts)))
        return CodeBatch(index, numbers_B, source.vectors(numbers_B).to(self.lm.device), ids_BT, mask_BT, found, with_lm)

    def _adapter(self, start_from: StartAdapter | None, home: AdapterHome) -> PrefixAdapter:
        settings = self.settings
        if start_from is None:
            if settings.freeze_adapter:
                raise UserError("freeze_adapter: there is no trained adapter to freeze; name one with --start-from")
            adapter = PrefixAdapter(settings.adapter, home)
            if settings.adapter.soft_words:
                adapter.word_offset_V.copy_(self._offset_V)
            return adapter
        adapter = start_from.adapter
        if adapter.settings != settings.adapter or adapter.home.dim != home.dim or adapter.home.lm["sha256"] != home.lm["sha256"]:
            raise UserError(f"the adapter to start from has another shape or LM ({adapter.settings}); write its shape into the config")
        return adapter.requires_grad_(not settings.freeze_adapter)
