"""Training of the reasoning stack: first steps that aim thoughts without the LM, then full-sequence cross-entropy of targets through it.

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
from torch.nn.functional import cross_entropy

from lsm.corpus.sampler import permutation, split_documents
from lsm.decode.adapter import AdapterHome, Prefix, PrefixAdapter, sentence_loss
from lsm.decode.reading import LengthBatches
from lsm.decode.training import content_weights, word_loss
from lsm.encode.token_states import KeptStates, padded, target_vectors, token_rows
from lsm.errors import UserError
from lsm.files import fingerprint
from lsm.latent.diagnostics import mean_pairwise_cosine
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora
from lsm.reason.card import reason_card
from lsm.reason.model import ReasonModel
from lsm.reason.settings import ReasonSettings
from lsm.reason.stack import prompt_embeddings, target_ids
from lsm.text.lead import choose_lead
from lsm.text.pairs import Pair
from lsm.training.seen import save_seen
from lsm.training.task import Task

_TEMPERATURE = 0.05
"""Of the contrast between a batch's targets."""
_HELD_OUT = np.arange(0)


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
    through_lm: bool = True


class ReasonTask(Task):
    """Trains `ReasonModel` on pairs; token states are computed batch by batch, or once before the first step (`data.keep_states`)."""

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
        if (settings.aim_weight or settings.aim_steps) and stack.latent_dim != encoder.dim:
            raise UserError(f"aim_weight and aim_steps want stack.latent_dim {encoder.dim}, the encoder's width, not {stack.latent_dim}")
        home = AdapterHome.of(lm, encoder=encoder.fingerprint(), dim=stack.latent_dim)
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
            self.model.expansion.start_from(start_from)
        self._scores: dict[str, float] = {}
        self._kept: KeptStates | None = None
        self._n_aim = settings.aim_steps * settings.accumulate

    def prepare(self, folder: Path, *, quiet: bool) -> None:
        """Token states of all inputs, where they are to be kept."""
        if self.settings.data.keep_states:
            inputs, targets = [pair.text for pair in self.pairs], [pair.targets[0] for pair in self.pairs]
            self._kept = KeptStates(folder, self.encoder, inputs, targets, self.model.max_input_tokens, quiet=quiet)

    def batch(self, index: int) -> PairBatch:
        """Batch `index`: any rows while thoughts are aimed, then rows whose targets are of nearly one length."""
        numbers_B = self._numbers(index)
        return self._gather([self.pairs[n] for n in numbers_B], numbers_B, through_lm=index >= self._n_aim)

    def loss(self, batch: PairBatch) -> tuple[Tensor, dict[str, Any]]:
        """Nats per token of the targets, and what draws thoughts and soft words to them; of the steps that aim, the latter alone."""
        settings, parts = self.settings, {}
        thoughts_BD = self.model.think(self.model.ideas(batch.states_BSE, batch.mask_BS))
        if batch.through_lm:
            loss_B, prefix = self._sentence_loss(thoughts_BD, batch)
            lengths_B = batch.mask_BT.sum(1)
            parts["target_loss"] = (loss_B * lengths_B).sum() / lengths_B.sum()
        else:
            some_BD = thoughts_BD[: len(batch.ids_BT)]
            prefix = self.model.expansion.prefix(self.model.expansion.trunk(some_BD), self.lm)
        if prefix.lift_BPH is not None and settings.word_weight:
            words = word_loss(self.lm, prefix, batch.ids_BT, batch.mask_BT, self._content_V, self.model.expansion.word_offset_V)
            assert words is not None
            parts["word_loss"] = settings.word_weight * words
        if batch.aim_BD is not None:
            cosine_BB = thoughts_BD.float() @ batch.aim_BD.T
            distance = (1 - cosine_BB.diagonal()).mean()
            if batch.through_lm:
                parts["aim_loss"] = settings.aim_weight * distance
            else:
                own_B = torch.arange(len(cosine_BB), device=cosine_BB.device)
                parts |= {"aim_loss": distance, "contrast_loss": cross_entropy(cosine_BB / _TEMPERATURE, own_B)}
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Held-out nats per token under the right idea, another input's and none; how alike ideas are (1 = collapsed), and the cosine of
        thoughts and the encoder's vectors of the targets where they are aimed at those."""
        order = sorted(self._chosen.tolist(), key=lambda n: len(self.held_out[n].targets[0]))
        totals, n_tokens = dict.fromkeys(("loss", "loss_shuffled_vector", "loss_zero_vector"), 0.0), 0
        batches = [self._gather([self.held_out[n] for n in order[start : start + 16]], _HELD_OUT) for start in range(0, len(order), 16)]
        every_ND = torch.cat([self.model.ideas(batch.states_BSE, batch.mask_BS) for batch in batches])
        sources = {"loss": every_ND, "loss_shuffled_vector": every_ND.roll(len(order) // 2, 0), "loss_zero_vector": every_ND * 0}
        place = 0
        for batch in batches:
            rows = slice(place, place := place + len(batch.ids_BT))
            for name, ideas_ND in sources.items():
                loss_B, _ = self._sentence_loss(self.model.think(ideas_ND[rows]), batch)
                totals[name] += float((loss_B * batch.mask_BT.sum(1)).sum())
            n_tokens += int(batch.mask_BT.sum())
        self._scores = {name: round(value / n_tokens, 4) for name, value in totals.items()}
        self._scores["pairwise_cosine"] = round(mean_pairwise_cosine(every_ND), 4)
        aims = [batch.aim_BD for batch in batches if batch.aim_BD is not None]
        if aims:
            self._scores["cosine_thought_target"] = round(float((self.model.think(every_ND) * torch.cat(aims)).sum(1).mean()), 4)
        return self._scores

    def save_final(self, folder: Path) -> None:
        """What eval, generate, interpolate and map read."""
        data = self.settings.data
        self.model.notes = {
            "n_rows": len(self.pairs), "n_rows_read": self._n_read(), "n_inputs_cut": self.n_inputs_cut,
            "n_targets_cut": self.n_targets_cut, "steps": self.settings.steps, "aim_steps": self.settings.aim_steps, "lead": self.lead,
            "inputs": list(data.inputs), "target": data.target, "document": data.document,
        }  # fmt: skip
        every = (*self.pairs, *self.held_out)
        save_seen(folder, inputs=[pair.text for pair in every], documents=[pair.document for pair in every])
        self.model.save_pretrained(folder, card=reason_card(self.model, self._scores))

    def fingerprint(self) -> dict[str, Any]:
        content = fingerprint([[pair.document, pair.text, pair.targets[0]] for pair in (*self.pairs, *self.held_out)])
        return {"data": content, "encoder": self.encoder.fingerprint(), "lm": self.lm.fingerprint(), "start_from": self._started_from}

    def plan(self) -> list[str]:
        settings, n_rows, seen = self.settings, len(self.pairs), self._n_read()
        aims = f"{settings.aim_steps:,} steps of {settings.aim_rows} rows without the LM, then " * (settings.aim_steps > 0)
        return [
            f"data        {n_rows:,} rows, {len(self.held_out):,} held out",
            f"cut         {self.n_inputs_cut:,} inputs at {self.model.max_input_tokens} tokens of the encoder, {self.n_targets_cut:,} "
            f"targets at {settings.data.max_target_tokens} of the LM",
            f"reads       {aims}{seen:,} rows ({seen / n_rows:.2f} epochs) through it; token states "
            + ("computed first and kept" if settings.data.keep_states else "computed on the way and not kept"),
            f"idea        {settings.stack.latent_dim} numbers, {2 * settings.stack.latent_dim} bytes as float16; middle "
            f"{settings.stack.middle.kind}; {settings.stack.expansion.prefix_length} soft positions",
            f"frozen      {self.encoder.name} → {self.lm.name}, {str(self.lm.dtype).removeprefix('torch.')}",
        ]

    def describe_batch(self, batch: PairBatch) -> str:
        return f"documents {[self.pairs[n].document for n in batch.numbers_B[:8]]} …"

    def units(self, batch: PairBatch) -> dict[str, float]:
        return {"rows": len(batch.numbers_B)}

    def _numbers(self, index: int) -> np.ndarray:
        if index >= self._n_aim:
            return self.batches.numbers(index - self._n_aim)
        epoch, place = divmod(index * self.settings.aim_rows, n := len(self.pairs))
        stop = place + self.settings.aim_rows
        return np.concatenate([permutation(n, self.seed, epoch + later) for later in range(-(-stop // n))])[place:stop]

    def _n_read(self) -> int:
        """Rows that go through the LM."""
        return sum(len(self._numbers(index)) for index in range(self._n_aim, self.settings.steps * self.settings.accumulate))

    def _sentence_loss(self, thoughts_BD: Tensor, batch: PairBatch) -> tuple[Tensor, Prefix]:
        return sentence_loss(self.model.expansion, self.lm, thoughts_BD, batch.ids_BT, batch.mask_BT, self._prompt)

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
        counts_V = torch.from_numpy(np.bincount(np.concatenate(rows).astype(np.int64), minlength=len(self.lm.head_VH))).float()
        _, self._content_V, offset_V = content_weights(counts_V, self.lm.device)
        if settings.stack.expansion.soft_words:
            self.model.expansion.word_offset_V.copy_(offset_V)
        self.lead = choose_lead(self.pairs[:2000])

    def _gather(self, pairs: Sequence[Pair], numbers_B: np.ndarray, *, through_lm: bool = True) -> PairBatch:
        """The rows numbered so, or others (`_HELD_OUT`). Steps that aim take soft words of few rows: one position for each row."""
        settings, device, kept = self.settings, self.lm.device, self._kept if len(numbers_B) else None
        targets = [pair.targets[0] for pair in pairs]
        rows = kept.states(numbers_B) if kept else token_rows(self.encoder, [pair.text for pair in pairs], self.model.max_input_tokens)
        few = targets if through_lm else targets[: max(1, len(targets) // settings.stack.expansion.prefix_length)]
        tokens = target_ids(self.lm, few, settings.stack.prompt, max_tokens=settings.data.max_target_tokens)
        aim_BD = None
        if settings.aim_weight or settings.aim_steps:
            aim_BD = (kept.vectors(numbers_B) if kept else target_vectors(self.encoder, targets)).to(device)
        return PairBatch(numbers_B, *padded(rows, device), *tokens, aim_BD, through_lm)
