"""Training of the reasoning stack: full-sequence cross-entropy of targets through the frozen LM.

Shape letters: B rows, S tokens of the encoder, E encoder width, D idea width, T tokens of a target, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm.corpus.sampler import permutation, split_documents
from lsm.decode.adapter import AdapterHome, PrefixAdapter
from lsm.decode.reading import LengthBatches
from lsm.decode.training import content_weights, word_loss
from lsm.errors import UserError
from lsm.files import fingerprint, write_json
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora
from lsm.reason.card import reason_card
from lsm.reason.model import ReasonModel
from lsm.reason.settings import ReasonSettings
from lsm.reason.space import mean_pairwise_cosine
from lsm.reason.stack import prompt_embeddings, target_ids, thought_loss, token_states
from lsm.text.lead import choose_lead
from lsm.text.pairs import Pair
from lsm.training.task import Task

SEEN = "seen.json"
"""Fingerprints of all inputs that were read, so that evaluation can leave them out, and of their documents' names."""


@dataclass(frozen=True)
class PairBatch:
    """Inputs as the frozen encoder's states and targets as tokens, on the device."""

    numbers_B: np.ndarray
    states_BSE: Tensor
    mask_BS: Tensor
    ids_BT: Tensor
    mask_BT: Tensor
    aim_BD: Tensor | None
    """The encoder's vectors of the targets, where thoughts are drawn to them."""


class ReasonTask(Task):
    """Trains `ReasonModel` on pairs. Token states are computed batch by batch and never kept: memory does not grow with the data."""

    name = "reasoning stack"

    def __init__(
        self, pairs: Sequence[Pair], encoder: Any, lm: FrozenLM, settings: ReasonSettings, *, seed: int,
        start_from: PrefixAdapter | None = None,
    ) -> None:  # fmt: skip
        """Raises `UserError` for data that cannot be split, or an adapter to start from that does not fit."""
        self.encoder, self.lm, self.settings, self.seed = encoder, lm, settings, seed
        stack, data = settings.stack, settings.data
        documents = list(dict.fromkeys(pair.document for pair in pairs))
        apart = {documents[n] for n in split_documents(documents, data.held_out_fraction)[1]}
        if len(apart) in (0, len(documents)):
            raise UserError("all rows belong to one document: none can be held out; name another field with --data.document")
        self.pairs = [pair for pair in pairs if pair.document not in apart]
        self.held_out = [pair for pair in pairs if pair.document in apart]
        self._chosen = permutation(len(self.held_out), 0, 0)[: data.evaluation_rows]
        if settings.aim_weight and stack.latent_dim != encoder.dim:
            raise UserError(f"aim_weight wants stack.latent_dim {encoder.dim}, the encoder's width, not {stack.latent_dim}")
        home = AdapterHome(
            encoder=encoder.fingerprint(), lm=lm.fingerprint(), dim=stack.latent_dim, lm_width=lm.width,
            vocabulary=len(lm.head_VH), embedding_rms=round(lm.embedding_rms(), 6),
        )  # fmt: skip
        limit = min(data.max_input_tokens, encoder.max_tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = self.module = ReasonModel(stack, home, max_input_tokens=limit).to(lm.device)
            if stack.expansion.lora_rank:
                self.model.expansion.lora = attach_lora(lm, stack.expansion.lora_rank)
        self._prompt = prompt_embeddings(lm, stack.prompt)
        self._read(limit)
        self._started_from = None if start_from is None else start_from.sha256()
        if start_from is not None:
            self._start_from(start_from)
        self._scores: dict[str, float] = {}

    def batch(self, index: int) -> PairBatch:
        """Batch `index`: targets of nearly one length."""
        numbers_B = self.batches.numbers(index)
        return self._gather([self.pairs[n] for n in numbers_B], numbers_B)

    def loss(self, batch: PairBatch) -> tuple[Tensor, dict[str, Any]]:
        """Nats per token of the targets, and what draws thought and soft words to them where the settings ask for it."""
        thoughts_BD = self.model.think(self.model.ideas(batch.states_BSE, batch.mask_BS))
        loss_B, prefix = thought_loss(self.model.expansion, self.lm, thoughts_BD, self._prompt, batch.ids_BT, batch.mask_BT)
        lengths_B = batch.mask_BT.sum(1)
        parts = {"target_loss": (loss_B * lengths_B).sum() / lengths_B.sum()}
        if prefix.lift_BPH is not None:
            offset_V = self.model.expansion.word_offset_V
            words = word_loss(self.lm, prefix, batch.ids_BT, batch.mask_BT, self._content_V, offset_V)
            assert words is not None
            parts["word_loss"] = words
        if batch.aim_BD is not None:
            parts["aim_loss"] = self.settings.aim_weight * (1 - (thoughts_BD * batch.aim_BD).sum(-1)).mean()
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Held-out nats per token under the right idea, another input's and none; and how alike ideas are (1 = collapsed)."""
        order = sorted(self._chosen.tolist(), key=lambda n: len(self.held_out[n].targets[0]))
        totals, n_tokens = dict.fromkeys(("loss", "loss_shuffled_vector", "loss_zero_vector"), 0.0), 0
        batches = [self._gather([self.held_out[n] for n in order[start : start + 16]], np.arange(0)) for start in range(0, len(order), 16)]
        ideas = [self.model.ideas(batch.states_BSE, batch.mask_BS) for batch in batches]
        every_ND = torch.cat(ideas)
        shuffled_ND, place = every_ND.roll(len(every_ND) // 2, 0), 0
        for batch, own_BD in zip(batches, ideas, strict=True):
            other_BD = shuffled_ND[place : place + len(own_BD)]
            place += len(own_BD)
            inputs = {"loss": own_BD, "loss_shuffled_vector": other_BD, "loss_zero_vector": torch.zeros_like(own_BD)}
            for name, ideas_BD in inputs.items():
                thoughts_BD = self.model.think(ideas_BD)
                loss_B, _ = thought_loss(self.model.expansion, self.lm, thoughts_BD, self._prompt, batch.ids_BT, batch.mask_BT)
                totals[name] += float((loss_B * batch.mask_BT.sum(1)).sum())
            n_tokens += int(batch.mask_BT.sum())
        self._scores = {name: round(value / n_tokens, 4) for name, value in totals.items()}
        self._scores["pairwise_cosine"] = round(mean_pairwise_cosine(every_ND.float().cpu().numpy()), 4)
        return self._scores

    def save_final(self, folder: Path) -> None:
        """What eval, generate, interpolate and map read."""
        self.model.notes = {
            "n_rows": len(self.pairs), "n_rows_read": self._n_read(), "n_inputs_cut": self.n_inputs_cut,
            "n_targets_cut": self.n_targets_cut,
            "lead": self.lead, "steps": self.settings.steps, "inputs": list(self.settings.data.inputs),
            "target": self.settings.data.target, "document": self.settings.data.document, "aim_weight": self.settings.aim_weight,
            "max_target_tokens": self.settings.data.max_target_tokens,
        }  # fmt: skip
        every = (*self.pairs, *self.held_out)
        names = {"inputs": {fingerprint(pair.text) for pair in every}, "documents": {fingerprint(pair.document) for pair in every}}
        write_json(folder / SEEN, {name: sorted(found) for name, found in names.items()})
        self.model.save_pretrained(folder, card=reason_card(self.model, self._scores))

    def fingerprint(self) -> dict[str, Any]:
        content = fingerprint([[pair.document, pair.text, pair.targets[0]] for pair in (*self.pairs, *self.held_out)])
        return {"data": content, "encoder": self.encoder.fingerprint(), "lm": self.lm.fingerprint(), "start_from": self._started_from}

    def plan(self) -> list[str]:
        settings, n_rows = self.settings, len(self.pairs)
        seen = self._n_read()
        return [
            f"data        {n_rows:,} rows, {len(self.held_out):,} held out",
            f"cut         {self.n_inputs_cut:,} inputs at {self.model.max_input_tokens} tokens of the encoder, {self.n_targets_cut:,} "
            f"targets at {settings.data.max_target_tokens} of the LM",
            f"reads       {seen:,} rows ({seen / n_rows:.2f} epochs), token states computed on the way and not kept",
            f"idea        {settings.stack.latent_dim} numbers, {2 * settings.stack.latent_dim} bytes as float16; middle "
            f"{settings.stack.middle.kind}; {settings.stack.expansion.prefix_length} soft positions",
            f"frozen      {self.encoder.name} → {self.lm.name}, {str(self.lm.dtype).removeprefix('torch.')}",
        ]

    def describe_batch(self, batch: PairBatch) -> str:
        return f"documents {[self.pairs[n].document for n in batch.numbers_B[:8]]} …"

    def units(self, batch: PairBatch) -> dict[str, float]:
        return {"rows": len(batch.numbers_B)}

    def _n_read(self) -> int:
        return sum(len(self.batches.numbers(index)) for index in range(self.settings.steps * self.settings.accumulate))

    def _read(self, limit: int) -> None:
        """Count tokens: what is cut, batches of one length, words of the targets."""
        settings, tokens_of = self.settings, getattr(self.encoder, "count_tokens", None)
        if tokens_of is None:
            raise UserError(f"encoder {self.encoder.name} gives no token states; take a model of transformers or sentence-transformers")
        self.n_inputs_cut = int((tokens_of([pair.text for pair in self.pairs]) > limit).sum())
        rows = self.lm.tokens.encode([pair.targets[0] for pair in self.pairs])
        lengths_N = np.array([len(row) + 1 for row in rows])
        self.n_targets_cut = int((lengths_N > settings.data.max_target_tokens).sum())
        self.batches = LengthBatches(
            np.minimum(lengths_N, settings.data.max_target_tokens),
            extra_positions=settings.stack.expansion.prefix_length + self._prompt.shape[1] - 1,
            budget_positions=settings.data.batch_positions,
            seed=self.seed,
        )
        counts_V = torch.from_numpy(np.bincount(np.concatenate(rows).astype(np.int64), minlength=len(self.lm.head_VH))).float() + 0.1
        frequency_V = (counts_V / counts_V.sum()).to(self.lm.device)
        self._content_V = content_weights(frequency_V)
        if settings.stack.expansion.soft_words:
            offset_V = torch.log_softmax(frequency_V.log() + self._content_V.log(), dim=0)
            self.model.expansion.word_offset_V.copy_(offset_V)
        self.lead = choose_lead(self.pairs[:2000])

    def _gather(self, pairs: Sequence[Pair], numbers_B: np.ndarray) -> PairBatch:
        states_BSE, mask_BS = token_states(self.encoder, [pair.text for pair in pairs], self.model.max_input_tokens)
        targets = [pair.targets[0] for pair in pairs]
        ids_BT, mask_BT = target_ids(self.lm, targets, self.settings.stack.prompt, max_tokens=self.settings.data.max_target_tokens)
        aim_BD = None
        if self.settings.aim_weight:
            aim_BD = torch.nn.functional.normalize(torch.from_numpy(self.encoder.encode(targets).vectors), dim=-1).to(self.lm.device)
        return PairBatch(numbers_B, states_BSE.to(self.lm.device), mask_BS.to(self.lm.device), ids_BT, mask_BT, aim_BD)

    def _start_from(self, adapter: PrefixAdapter) -> None:
        mine = self.model.expansion
        if adapter.settings != mine.settings or adapter.home.dim != mine.home.dim or adapter.home.lm_width != mine.home.lm_width:
            raise UserError(
                f"the adapter to start from reads {adapter.home.dim} numbers and has the shape {adapter.settings}; "
                "write both into stack.latent_dim and stack.expansion"
            )
        mine.load_state_dict({name: value for name, value in adapter.state_dict().items() if not name.startswith("lora.")}, strict=False)
