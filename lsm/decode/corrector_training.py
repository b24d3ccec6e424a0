"""Training of a corrector: cross-entropy of each sentence through the frozen LM, given its vector and a hypothesis for it.

Shape letters: B rows, D vector width, T tokens, S tokens of a hypothesis, F trunk width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import permutation, split_documents
from lsm.decode.adapter import PrefixAdapter, spoken_before
from lsm.decode.correcting import Writer
from lsm.decode.corrector import Corrector
from lsm.decode.corrector_card import corrector_card
from lsm.decode.corrector_settings import CorrectorSettings
from lsm.decode.decoders import PrefixDecoder
from lsm.decode.hypotheses import Hypotheses
from lsm.decode.reading import LengthBatches, TokenizedSentences
from lsm.decode.training import add_noise
from lsm.decode.vectors import Encode, unit
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora, lora_off
from lsm.training.loop import step_generator
from lsm.training.task import Task

_CORRECTED = 32
"""Held-out hypotheses that are corrected, and re-encoded, at each evaluation."""


@dataclass(frozen=True)
class CorrectionBatch:
    """Sentences with a hypothesis for each, on the device; all hypotheses take the same number of slots."""

    numbers_B: np.ndarray
    z_BD: Tensor
    own_BD: Tensor
    hypothesis_BS: Tensor
    ids_BT: Tensor
    mask_BT: Tensor


class CorrectorTask(Task):
    """Trains `Corrector` on a corpus's sentences and on what the adapter that it starts from writes for them (one step, as vec2text)."""

    name = "corrector"

    def __init__(
        self, corpus: Corpus, lm: FrozenLM, settings: CorrectorSettings, *, seed: int, start_from: PrefixAdapter, encode: Encode
    ) -> None:
        """Raises `UserError` for an adapter of another shape, or with LoRA layers of its own."""
        if start_from.settings != settings.adapter:
            raise UserError(f"the adapter to start from has another shape ({start_from.settings}); write its shape into the config")
        self.corpus, self.lm, self.settings, self.seed, self.encode = corpus, lm, settings, seed, encode
        reading = settings.reading
        train, held_out = split_documents(corpus.doc_ids, reading.held_out_fraction)
        if not len(held_out):
            raise UserError(f"corpus {corpus.path} has one document: none can be held out; encode at least two")
        self.sentences = TokenizedSentences(corpus, train, lm.tokens, max_tokens=reading.max_tokens, limit=reading.max_sentences)
        self.held_out = TokenizedSentences(corpus, held_out, lm.tokens, max_tokens=reading.max_tokens)
        self._hypothesizer = PrefixDecoder(lm, start_from)
        self._adapter_sum = start_from.sha256()
        adapter = PrefixAdapter(start_from.settings, start_from.home)
        adapter.load_state_dict(start_from.state_dict())
        adapter.requires_grad_(not settings.freeze_adapter)
        self.corrector = self.module = Corrector(
            adapter, lora_rank=settings.lora_rank, hypothesis_tokens=settings.hypothesis_tokens,
            sentence_tokens=reading.max_tokens, hypotheses_of=self._adapter_sum,
        ).to(lm.device)  # fmt: skip
        if settings.lora_rank:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.corrector.lora = attach_lora(lm, settings.lora_rank)
        self._scores: dict[str, float] = {}

    def prepare(self, folder: Path, *, quiet: bool) -> None:
        """Write the hypotheses, with the LM as it is without LoRA layers."""
        chosen_N = permutation(len(self.held_out), 0, 0)[: self.settings.reading.evaluation_sentences]
        made_by = f"{self._adapter_sum} {self.lm.sha256} {self.corpus.fingerprint}"
        common = {
            "encode": self.encode,
            "tokens": self.lm.tokens,
            "chunk": self.settings.chunk_sentences,
            "made_by": made_by,
            "quiet": quiet,
        }
        decoder = self._hypothesizer
        self._chosen_N = chosen_N
        everything_N = np.arange(len(self.sentences))
        with lora_off(self.lm):
            self._of_held_out = Hypotheses.prepare(folder / "held-out", self.held_out, decoder, numbers_N=chosen_N, **common)
            self._hypotheses = Hypotheses.prepare(folder / "training", self.sentences, decoder, numbers_N=everything_N, **common)
        slots_N = np.array([self.corrector.slots(n) for n in self._hypotheses.lengths_N])
        extra = 3 * self.settings.adapter.prefix_length - 1
        self._groups = [
            (np.flatnonzero(slots_N == slots), LengthBatches(
                self.sentences.lengths_N[slots_N == slots], extra_positions=extra + int(slots),
                budget_positions=self.settings.reading.batch_positions, seed=self.seed,
            )) for slots in np.unique(slots_N)
        ]  # fmt: skip

    def batch(self, index: int) -> CorrectionBatch:
        """Batch `index` of the endless stream: the groups (hypotheses of one number of slots) take turns at random, by their size."""
        generator = step_generator(self.seed, index)
        n_batches = [batches.n_batches for _, batches in self._groups]
        epoch, position = divmod(index, sum(n_batches))
        place = int(permutation(sum(n_batches), self.seed, 2 * epoch + 1)[position])
        group = int(np.searchsorted(np.cumsum(n_batches), place, side="right"))
        members_N, batches = self._groups[group]
        within = place - int(sum(n_batches[:group]))
        numbers_B = members_N[batches.numbers(epoch * batches.n_batches + within)]
        return self._gather(self.sentences, numbers_B, self._hypotheses, numbers_B, generator)

    def loss(self, batch: CorrectionBatch) -> tuple[Tensor, dict[str, Any]]:
        """Nats per token of the true sentences."""
        loss_B, lengths_B = self._sentence_losses(batch)
        loss = (loss_B * lengths_B).sum() / lengths_B.sum()
        return loss, {}

    def evaluate(self) -> dict[str, float]:
        """Held-out nats per token with the right vector and hypothesis, another sentence's vector, another's hypothesis; and the cosine
        between target and hypothesis before and after one correction."""
        names = ("loss", "loss_shuffled_vector", "loss_shuffled_hypothesis")
        totals, n_tokens, of = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0), self._of_held_out
        slots_N = np.array([self.corrector.slots(n) for n in of.lengths_N])
        other_N = np.roll(np.arange(len(slots_N)), 1)  # whose vector; another's hypothesis has to take as many slots
        for slots in np.unique(slots_N):
            places_N = np.flatnonzero(slots_N == slots)
            wrong_N = np.roll(places_N, 1)
            for start in range(0, len(places_N), 32):
                places_B, other_B, wrong_B = (some[start : start + 32] for some in (places_N, other_N[places_N], wrong_N))
                batch = self._gather(self.held_out, self._chosen_N[places_B], of, places_B, None)
                foreign = self._gather(self.held_out, self._chosen_N[other_B], of, wrong_B, None)
                wrong = replace(batch, own_BD=foreign.own_BD, hypothesis_BS=foreign.hypothesis_BS)
                batches = {"loss": batch, "loss_shuffled_vector": replace(batch, z_BD=foreign.z_BD), "loss_shuffled_hypothesis": wrong}
                for name, one in batches.items():
                    if name == "loss_shuffled_hypothesis" and len(places_N) == 1:
                        continue
                    loss_B, lengths_B = self._sentence_losses(one)
                    totals[name] += float((loss_B * lengths_B).sum())
                    n_tokens[name] += int(lengths_B.sum())
        self._scores = {name: round(totals[name] / max(1, n_tokens[name]), 4) for name in names}
        z_BD = unit(self.held_out.vectors(self._chosen_N[:_CORRECTED]).numpy())
        own_BD = of.z_ND[:_CORRECTED].astype(np.float32)
        texts = [self.lm.tokens.decode(row.tolist()) for row in of.ids[:_CORRECTED]]
        better = Writer(self.lm, self.corrector).write(z_BD, own_BD, texts)
        after_BD = unit(self.encode([text or "nothing" for text in better]))
        self._scores["cosine_hypothesis"] = round(float((own_BD * z_BD).sum(1).mean()), 4)
        self._scores["cosine_corrected"] = round(float((after_BD * z_BD).sum(1).mean()), 4)
        return self._scores

    def save_final(self, folder: Path) -> None:
        """The folder that `--corrector` takes."""
        card = corrector_card(self.corrector, self.settings, n_sentences=len(self.sentences), scores=self._scores)
        self.corrector.save_pretrained(folder, card=card)

    def fingerprint(self) -> dict[str, Any]:
        home = {"corpus": self.corpus.fingerprint, "encoder": self.corpus.encoder, "lm": self.lm.fingerprint()}
        return home | {"hypotheses_of": self._adapter_sum}

    def plan(self) -> list[str]:
        sentences = self.sentences
        return [
            f"data        {len(sentences):,} sentences, {sentences.n_left_out:,} over {self.settings.reading.max_tokens} tokens left out, "
            f"{len(self.held_out):,} held out; {np.mean(sentences.lengths_N):.1f} tokens each",
            f"first       {len(sentences):,} hypotheses are written and re-encoded",
            f"frozen LM   {self.lm.name}, {str(self.lm.dtype).removeprefix('torch.')}",
        ]

    def describe_batch(self, batch: CorrectionBatch) -> str:
        return f"corpus rows {self.sentences.rows_N[batch.numbers_B][:8].tolist()} …"

    def units(self, batch: CorrectionBatch) -> dict[str, float]:
        return {"sentences": len(batch.numbers_B)}

    def _sentence_losses(self, batch: CorrectionBatch) -> tuple[Tensor, Tensor]:
        """loss_B (nats per token) and lengths_B."""
        trunks_B3F = self.corrector.trunks(batch.z_BD, batch.own_BD)
        inputs_BLH = self.corrector.inputs(trunks_B3F, batch.hypothesis_BS, self.lm)
        spoken_BTH = spoken_before(self.lm.embed(batch.ids_BT))
        n_spoken_T = torch.arange(batch.ids_BT.shape[1], device=self.lm.device)
        bias_BTH = self.corrector.adapter.bias(trunks_B3F[:, 0], spoken_BTH, n_spoken_T)
        with torch.autocast(self.lm.device.type, enabled=False):  # the LM has its own dtype
            loss_B = self.lm.prefix_loss(inputs_BLH, batch.ids_BT, batch.mask_BT, bias_BTH)
        return loss_B, batch.mask_BT.sum(1)

    def _gather(
        self, source: TokenizedSentences, numbers_B: np.ndarray, of: Hypotheses, places_B: np.ndarray, generator: torch.Generator | None
    ) -> CorrectionBatch:
        """Sentences `numbers_B` of `source` with the hypotheses at `places_B`."""
        ids_BT, mask_BT = source.ids(numbers_B)
        z_BD = torch.nn.functional.normalize(source.vectors(numbers_B), dim=-1)
        if generator is not None:
            z_BD = add_noise(z_BD, self.settings.reading.noise, generator)
        own_BD = torch.from_numpy(of.z_ND[places_B].astype(np.float32))
        rows = [self.corrector.in_slots(of.ids[n].tolist(), self.lm.tokens.end_id) for n in places_B]
        device = self.lm.device
        return CorrectionBatch(
            numbers_B, z_BD.to(device), own_BD.to(device), torch.tensor(rows, device=device), ids_BT.to(device), mask_BT.to(device)
        )
