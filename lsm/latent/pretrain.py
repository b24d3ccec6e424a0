"""Pretraining of the latent transformer as a task for the training loop.

Shape letters: B rows, S sentences, D vector width, N queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsm.config import to_dict
from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import PackedBatch, PackedSampler, VectorDocuments, permutation, split_documents, summary
from lsm.errors import UserError
from lsm.files import sha256_file
from lsm.latent.attention import require as require_attention
from lsm.latent.batch import LatentBatch, denoised_rows, make_batch
from lsm.latent.card import model_card
from lsm.latent.evaluation import evaluate_batches
from lsm.latent.hard_negatives import HardNegativeTable, Neighbours
from lsm.latent.lexical import LexicalSpace
from lsm.latent.losses import WeightedSum
from lsm.latent.normaliser import Normaliser
from lsm.latent.saved import WEIGHTS, locate
from lsm.latent.settings import PretrainSettings
from lsm.latent.space import Part, SpaceDocuments, judged_dims, parts_of
from lsm.latent.trained_on import read_trained_on, text_key, write_trained_on
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.latent.words import WordLosses
from lsm.lm.frozen import FrozenLM
from lsm.training.distributed import ALONE, Ranks
from lsm.training.loop import step_seed
from lsm.training.task import Task

_EVALUATION = -2
_MODEL_STREAM = -3
_SENTENCES_COUNTED = 20_000
"""Sentences that document frequencies are counted in."""


class Pretraining(Task):
    """The latent transformer, a corpus' training documents, and the weighted sum of objectives.

    Args:
        parts: what the vectors are made of, with `residual` the learned code's fingerprint; empty = semantic vectors.
        text_sha256: of every document's text, to record which ones are trained on; None where there is no text.
        decoder: frozen, for the objectives `words` and `text_lm`; the source must have `text_at` then.
        start_from: run whose weights the model starts from.
        lexical_lm: the LM that will write, for the objective `lexical`; the source must have `text_at` then.
        neighbours: finds sentences of the source that resemble others, for `objectives.hard_negatives`.
        index: what tells one such finder from another.

    Raises:
        UserError: too few documents to train on and hold out.
    """

    name = "latent transformer"

    def __init__(
        self,
        source: VectorDocuments,
        settings: PretrainSettings,
        *,
        dim: int,
        encoder: dict[str, Any] | None = None,
        parts: Sequence[Part] = (),
        residual: dict[str, Any] | None = None,
        corpus_fingerprint: str = "",
        text_sha256: Sequence[str] | None = None,
        decoder: WordLosses | None = None,
        lexical_lm: FrozenLM | None = None,
        start_from: Path | None = None,
        neighbours: Neighbours | None = None,
        index: str = "",
        seed: int = 0,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        self.settings, self.seed, self.ranks, self.device = settings, seed, ranks, ranks.device or torch.device(device)
        require_attention(settings.model.attention, self.device)
        self._inputs = {"corpus": corpus_fingerprint, "encoder": encoder or {}} | ({"decoder": decoder.name} if decoder else {})
        self._inputs |= ({"lexical_lm": lexical_lm.sha256} if lexical_lm else {}) | ({"index": index} if index else {})
        assert settings.objectives.worded == (decoder is not None), "objectives in words and a decoder go together"
        assert (settings.objectives.lexical == 0) == (lexical_lm is None), "objectives.lexical and an LM go together"
        assert (settings.objectives.hard_negatives == 0) == (neighbours is None), "objectives.hard_negatives and neighbours go together"
        train, held_out = split_documents(source.doc_ids, settings.data.held_out_fraction)
        # In a fixed random order, so that less data is not another domain.
        train = np.sort(train[permutation(len(train), 0, 0)[: settings.data.limit_documents]])
        self._hard = HardNegativeTable(source, train, neighbours, settings.objectives) if neighbours is not None else None
        before = read_trained_on(locate(start_from)) if start_from is not None else set()
        # Unknown once, unknown for good: a list that is not whole would let a scoreboard judge on training documents.
        self._trained_on = None if text_sha256 is None or before is None else [*(text_sha256[doc] for doc in train), *before]
        if before and text_sha256 is not None:
            held_out = np.array([doc for doc in held_out if text_key(text_sha256[doc]) not in before], dtype=np.int64)
        rows = max(1, settings.data.batch_sentences // settings.model.context)
        self.sampler = PackedSampler(source, train, context=settings.model.context, rows=rows, seed=seed)
        self.held_out = PackedSampler(source, held_out, context=settings.model.context, rows=rows)
        for what, sampler in (("training", self.sampler), ("held-out", self.held_out)):
            if sampler.n_rows == 0:
                raise UserError(
                    f"no {what} document of at least two sentences among {len(source.doc_ids)} documents; encode more documents, "
                    f"or change --data.held-out-fraction {settings.data.held_out_fraction}"
                )
        self._check_shares(min(rows, self.sampler.n_rows))
        normaliser = Normaliser.fit((source.vectors(int(doc)) for doc in train), dim, settings.model.normaliser)
        config = LatentConfig(
            dim=dim, model=settings.model, encoder=encoder or {}, parts=list(parts), residual=residual,
            temperature=settings.objectives.temperature, point=settings.objectives.point,
            restores=settings.objectives.denoise > 0,
            guidable=settings.objectives.hide_state > 0,
            lexical=None if lexical_lm is None else LexicalSpace.of(lexical_lm),
            ahead=settings.objectives.heads_ahead,
        )  # fmt: skip
        torch.manual_seed(step_seed(seed, _MODEL_STREAM))
        self.model = LatentTransformer(config, normaliser)
        if lexical_lm is not None and self.model.lexical is not None:
            self.model.lexical.fit(lexical_lm, _some_texts(source, train))
        if start_from is not None:
            self.model.take_weights(LatentTransformer.from_pretrained(start_from), start_from)
            if lexical_lm is not None and self.model.lexical is not None:
                self.model.lexical.attach(lexical_lm)  # its document frequencies have come along
            self._inputs |= {"start_from": sha256_file(locate(start_from) / WEIGHTS)}
        self.model.to(self.device)
        self.module = self.model
        self.losses = WeightedSum(
            self.model,
            settings.objectives,
            source,
            decoder=decoder,
            lexical_lm=lexical_lm,
            accumulate=settings.accumulate,
            processes=ranks.size,
        )
        # Parts that no objective reaches get no gradient; leaving them out keeps them out of plan, checkpoints and decay.
        if not settings.objectives.denoise:
            self.model.restoration.requires_grad_(False)
        if not settings.objectives.contrasts:
            self.model.log_temperature.requires_grad_(False)
        if not settings.objectives.point:
            self.model.correction.requires_grad_(False)
            if settings.model.sampler != "energy" and not settings.objectives.ahead:
                self.model.anchor.requires_grad_(False)
        if not (settings.objectives.denoise or settings.data.context_dropout):
            self.model.mask_vector.requires_grad_(False)

    @classmethod
    def on_corpus(
        cls,
        path: Path,
        settings: PretrainSettings,
        *,
        decoder: WordLosses | None = None,
        lexical_lm: FrozenLM | None = None,
        start_from: Path | None = None,
        neighbours: Neighbours | None = None,
        index: str = "",
        seed: int,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> Pretraining:
        """The task on a corpus folder."""
        corpus = Corpus.open(path)
        parts = parts_of(corpus, settings.data.space, settings.data.residual_dims)
        plain = settings.data.space == "semantic"
        return cls(
            corpus if plain else SpaceDocuments(corpus, parts),
            settings,
            dim=sum(part.dim for part in parts),
            encoder=corpus.encoder,
            parts=() if plain else parts,
            residual=None if plain else corpus.residual,
            corpus_fingerprint=corpus.fingerprint,
            text_sha256=corpus.document_column("text_sha256").to_pylist(),
            decoder=decoder,
            lexical_lm=lexical_lm,
            start_from=start_from,
            neighbours=neighbours,
            index=index,
            seed=seed,
            device=device,
            ranks=ranks,
        )

    def batch(self, index: int) -> LatentBatch:
        """Training batch number `index`."""
        generator = np.random.Generator(np.random.Philox(key=step_seed(self.seed, index)))
        packed = self.sampler.batch(index)
        return make_batch(packed, generator, self.settings, device=self.device, ranks=self.ranks, hard=self._hard)

    def prepare(self, folder: Path, *, quiet: bool) -> None:
        """Find the sentences that hard negatives are drawn from."""
        if self._hard is not None:
            self._hard.prepare(folder / "hard-negatives", ranks=self.ranks, quiet=quiet)

    def loss(self, batch: LatentBatch) -> tuple[Tensor, dict[str, Any]]:
        """The weighted sum and each of its parts."""
        total, parts, _ = self.losses(batch)
        logged = {name: value.detach() for name, value in parts.items()} | {"temperature": self.model.log_temperature.detach().exp()}
        return total, logged | self.losses.gradients  # these are known once the loop has gone backward

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out losses, and rank and recall of the true next sentence among the evaluated ones, beside the exponential mean's."""
        return evaluate_batches(self._held_out_predictions(), judged_dims(self.model.config.parts))

    def save_final(self, folder: Path) -> None:
        """The loadable model with its card, and the list of the documents it was trained on."""
        training = {"steps": self.settings.steps, "seed": self.seed} | {f"training {k}": v for k, v in summary(self.sampler).items()}
        training |= {f"objective {name}": value for name, value in to_dict(self.settings.objectives).items()}
        card = model_card(self.model, training=training, evaluation=self.evaluate())
        self.model.save_pretrained(folder, card)
        if self._trained_on is not None:
            write_trained_on(folder, self._trained_on)

    def fingerprint(self) -> dict[str, Any]:
        """Corpus and encoder."""
        return self._inputs

    def plan(self) -> list[str]:
        """Data and arithmetic of a step."""
        settings, train, held_out = self.settings, summary(self.sampler), summary(self.held_out)
        per_step = self.sampler.rows * settings.model.context * settings.accumulate
        epochs = settings.steps * settings.accumulate / self.sampler.n_batches
        return [
            f"training    {train['sentences']:,} sentences of {train['documents']:,} documents "
            f"in {train['rows']:,} rows ({train['filled']:.0%} filled)",
            f"held out    {held_out['sentences']:,} sentences of {held_out['documents']:,} documents",
            f"a step      {per_step:,} sentences, {self.flops_per_step() / 1e9:,.3g} GFLOP; {epochs:.1f} epochs in all",
        ]

    def describe_batch(self, batch: LatentBatch) -> str:
        """Ids of the documents in a batch."""
        documents = np.unique(batch.packed.document_BS[batch.packed.document_BS >= 0])
        named = ", ".join(self.sampler.source.doc_ids[doc] for doc in documents[:12])
        return f"documents {named}" + (f" and {len(documents) - 12} more" if len(documents) > 12 else "")

    def units(self, batch: LatentBatch) -> dict[str, float]:
        """Sentences, and the documents that as many make up on average."""
        source, sentences = self.sampler.source, batch.packed.n_sentences
        return {"sentences": sentences, "documents": sentences * len(source.doc_ids) / int(source.starts[-1])}

    def layers(self) -> list[nn.Module]:
        """The transformer blocks."""
        return list(self.model.blocks)

    def flops_per_step(self) -> float:
        """6 × weights × sentences for the passes (Kaplan et al. 2020), attention's products, InfoNCE's, and each sample of an energy head;
        the frozen LM of `words` and `text_lm` is not counted."""
        settings = self.settings
        samples = settings.objectives.energy_samples if settings.model.sampler == "energy" else 1
        sentences = self.sampler.rows * settings.model.context
        passes = 1 + (settings.objectives.denoise_rows if settings.objectives.denoise else 0)
        weights = sum(
            p.numel() * (samples if name.startswith("sampler.") else 1)
            for name, p in self.model.named_parameters()
            if p.requires_grad and p.ndim >= 2
        )
        attention = 12 * settings.model.layers * settings.model.hidden * settings.model.context
        candidates = sentences * (1 + settings.objectives.hard_negatives)
        contrast = 6 * sentences * candidates * self.model.config.dim if settings.objectives.contrasts else 0
        return settings.accumulate * (sentences * passes * (6 * weights + attention) + contrast)

    def _check_shares(self, rows: int) -> None:
        goals, size = self.settings.objectives, self.ranks.size
        if rows % size:
            raise UserError(
                f"--data.batch-sentences {self.settings.data.batch_sentences} makes {rows} rows of --model.context "
                f"{self.settings.model.context}, which {size} processes cannot share evenly; make the rows a multiple of {size}"
            )
        if goals.denoise and denoised_rows(rows, goals) % size:
            raise UserError(
                f"--objectives.denoise-rows {goals.denoise_rows} of {rows} rows are {denoised_rows(rows, goals)}, which {size} processes "
                f"cannot share evenly; make them a multiple of {size}, or switch --objectives.denoise off"
            )

    def _held_out_predictions(self) -> Iterator[tuple[PackedBatch, Tensor, dict[str, float]]]:
        """Each evaluated batch with its predictions and losses; the same batches and masks every time."""
        sentences = 0
        for index in range(-(-self.held_out.n_rows // self.held_out.rows)):
            packed = self.held_out.in_order(index)
            generator = np.random.Generator(np.random.Philox(key=step_seed(_EVALUATION % 2**32, index)))
            total, parts, read = self.losses(make_batch(packed, generator, self.settings, device=self.device, ranks=None))
            prediction_BSD = self.model.next_vectors(*read)
            yield packed, prediction_BSD.float().cpu(), {"loss": float(total)} | {name: float(value) for name, value in parts.items()}
            sentences += packed.n_sentences
            if sentences >= self.settings.data.eval_sentences:
                return


def _some_texts(source: VectorDocuments, documents: np.ndarray) -> list[str]:
    """Up to 20,000 sentences, spread evenly over the documents."""
    rows = np.concatenate([np.arange(source.starts[doc], source.starts[doc + 1]) for doc in documents])
    return source.text_at(rows[np.unique(np.linspace(0, len(rows) - 1, _SENTENCES_COUNTED).astype(np.int64))])
