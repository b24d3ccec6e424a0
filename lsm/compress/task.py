"""Training of soft tokens: batches of texts with their questions, one ratio each, through the frozen LM.

Shape letters: C texts, N questions, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm.compress.objectives import answer_terms, guess, reconstruction, soft_terms, span_term
from lsm.compress.prompts import Prompts
from lsm.compress.saved import NOTHING, Source, save_compressor
from lsm.compress.settings import CompressSettings, ObjectiveSettings
from lsm.connector.compressor import Compressor
from lsm.corpus.sampler import permutation, split_documents
from lsm.errors import UserError
from lsm.files import fingerprint
from lsm.lm.contexts import answer_hidden, read_contexts, read_preamble
from lsm.lm.frozen import FrozenLM
from lsm.lm.soft import Soft, read_soft
from lsm.text.questions import Question, others
from lsm.training.loop import step_generator
from lsm.training.seen import save_seen
from lsm.training.task import Task

_FIT_TEXTS = 256


@dataclass(frozen=True)
class QuestionBatch:
    """Some texts, each with questions, and how many of their tokens become one soft token."""

    texts: list[str]
    questions: list[Question]
    row_of_N: list[int]
    ratio: int
    index: int


class CompressTask(Task):
    """Trains a `Compressor` so that the frozen LM answers from its soft tokens.

    The first `objectives.spans_steps` steps teach scores what answers are made of, the next `reconstruct_steps` ask for the text alone
    (reconstruct first, then the task).
    """

    name = "compressor"

    def __init__(self, questions: list[Question], lm: FrozenLM, settings: CompressSettings, *, seed: int, source: Source = NOTHING) -> None:
        self.lm, self.settings, self.seed, self.encoder = lm, settings, seed, source.fingerprint
        texts = list({one.text for one in questions})
        longer = {text for text, ids in zip(texts, lm.tokens.encode(texts), strict=True) if len(ids) > settings.data.max_context_tokens}
        kept = [one for one in questions if one.text not in longer]
        self.n_left_out = len(questions) - len(kept)
        articles = sorted({one.article for one in kept})
        if len(articles) < 2:
            raise UserError(f"data.train: {len(kept)} questions on {len(articles)} articles; at least two are needed, one to hold out")
        away = {articles[place] for place in split_documents(articles, settings.data.held_out_fraction)[1]}
        self.by_text: dict[str, list[Question]] = {}
        for one in kept:
            if one.article not in away:
                self.by_text.setdefault(one.text, []).append(one)
        self.texts, self._n_questions = list(self.by_text), sum(map(len, self.by_text.values()))
        self.held_out = [one for one in kept if one.article in away]
        self.rows = [*(one for rows in self.by_text.values() for one in rows), *self.held_out]
        # One held-out article has no other beside it: then its texts stand against those of the training.
        self.other = others(self.held_out if len(away) > 1 else self.rows)
        self.prompts = Prompts(lm.tokens, settings.data.shots)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = Compressor(settings.encoder, lm, source.pieces, source.width, self.prompts.preamble)
        self.compressor = self.module = made.to(lm.device)
        if self.compressor.adapter is not None and settings.encoder.source == "encoder" and not settings.encoder.code_dim:
            self.compressor.fit_words(self.texts[:_FIT_TEXTS], lm, min(settings.ratios))
        with self.compressor.silent(lm):
            self.preamble = read_preamble(lm, self.prompts.preamble)
        self._scores: dict[str, float] = {}
        self._n_spans = settings.objectives.spans_steps * settings.accumulate
        self._to_score: dict[str, tuple[Tensor, list[int]]] = {}

    def batch(self, index: int) -> QuestionBatch:
        """Batch `index`: texts in an epoch's own order, questions and ratio drawn from the index."""
        data, generator = self.settings.data, step_generator(self.seed, index)
        size = min(len(self.texts), self.settings.objectives.spans_texts if index < self._n_spans else data.contexts)
        epoch, place = divmod(index, len(self.texts) // size)
        texts = [self.texts[number] for number in permutation(len(self.texts), self.seed, epoch)[place * size :][:size]]
        if index < self._n_spans:
            return QuestionBatch(texts, [], [], 0, index)
        ratio = self.settings.ratios[int(torch.randint(len(self.settings.ratios), (1,), generator=generator))]
        questions, row_of_N = [], []
        for row, text in enumerate(texts):
            own = self.by_text[text]
            for place in torch.randperm(len(own), generator=generator)[: data.questions_per_context].tolist():
                questions.append(own[place])
                row_of_N.append(row)
        return QuestionBatch(texts, questions, row_of_N, ratio, index)

    def loss(self, batch: QuestionBatch) -> tuple[Tensor, dict[str, Any]]:
        """The weighted terms and each of them."""
        with torch.autocast(self.lm.device.type, enabled=False):
            terms = self._terms(batch)
        return torch.stack(list(terms.values())).sum(), {name: value.detach() for name, value in terms.items()}

    def evaluate(self) -> dict[str, float]:
        """Held-out nats per answer token at each ratio, with another text's soft tokens, and without any."""
        chosen = permutation(len(self.held_out), 0, 0)[: self.settings.data.evaluation_questions]
        questions = [self.held_out[number] for number in sorted(chosen)]
        texts = list(dict.fromkeys(one.text for one in questions))
        with torch.autocast(self.lm.device.type, enabled=False):  # the LM has its own dtype
            scores = {f"loss_{ratio}x": self._held_out_loss(texts, questions, ratio) for ratio in self.settings.ratios}
            scores["loss"] = float(np.mean(list(scores.values())))
            scores["loss_shuffled_text"] = self._held_out_loss(texts, questions, self.settings.ratios[0], read_from=self.other)
            scores["loss_no_text"] = self._held_out_loss(texts, questions, None)
        self._scores = {name: round(value, 4) for name, value in scores.items()}
        return self._scores

    def save_final(self, folder: Path) -> None:
        """What `lsm compress eval` takes."""
        save_seen(folder, articles=[one.article for one in self.rows], texts=[one.text for one in self.rows])
        save_compressor(folder, self.compressor, self.settings, self.lm, self.encoder, n=self._n_questions, scores=self._scores)

    def fingerprint(self) -> dict[str, Any]:
        asked = fingerprint([[one.article, one.text, one.question, one.answers] for one in self.rows])
        return {"questions": asked, "lm": self.lm.fingerprint(), "encoder": self.encoder}

    def plan(self) -> list[str]:
        n_batches, n_texts = self.settings.steps * self.settings.accumulate, len(self.texts)
        scored = min(n_batches, self._n_spans) * min(self.settings.objectives.spans_texts, n_texts)
        seen = max(0, n_batches - self._n_spans) * min(self.settings.data.contexts, n_texts)
        return [
            f"data        {self._n_questions:,} questions on {n_texts:,} texts, {self.n_left_out:,} on texts over "
            f"{self.settings.data.max_context_tokens} tokens left out; {len(self.held_out):,} held out by article; "
            f"{seen / n_texts:.2f} epochs" + f" after {scored / n_texts:.1f} of scores alone" * (scored > 0),
            f"frozen LM   {self.lm.name}, {str(self.lm.dtype).removeprefix('torch.')}; one soft token for "
            f"{', '.join(map(str, self.settings.ratios))} tokens",
        ]

    def describe_batch(self, batch: QuestionBatch) -> str:
        return f"questions {[one.id for one in batch.questions[:8]]} at {batch.ratio}x" if batch.questions else f"texts {batch.texts[:4]}"

    def units(self, batch: QuestionBatch) -> dict[str, float]:
        return {"questions": len(batch.questions), "texts": len(batch.texts)}

    def _terms(self, batch: QuestionBatch) -> dict[str, Tensor]:
        wanted, lm, compressor = self.settings.objectives, self.lm, self.compressor
        if batch.index < self._n_spans:
            return {"spans": (wanted.spans or 1.0) * span_term(self._first_scores(batch.texts), lm, batch.texts, self._answers(batch))}
        self._to_score.clear()
        made = compressor(batch.texts, lm, batch.ratio)
        soft, terms = made.soft, soft_terms(wanted, made, compressor.rms)
        if compressor.codebook is not None:
            terms["commitment"] = made.commitment
        if wanted.spans:
            terms["spans"] = wanted.spans * span_term(made.scores, lm, batch.texts, self._answers(batch))
        first = batch.index < self._n_spans + wanted.reconstruct_steps * self.settings.accumulate
        with compressor.silent(lm):
            if first or wanted.reconstruct:
                read = read_soft(lm, soft, range(len(batch.texts)), self.preamble)
                terms["reconstruct"] = (wanted.reconstruct or 1.0) * reconstruction(wanted, lm, read, batch.texts)
            if not first and (wanted.answer or wanted.distill):
                terms |= self._answer_terms(batch, soft)
        return terms

    def _answers(self, batch: QuestionBatch) -> list[list[str]]:
        """Answers to all questions on each text of a batch."""
        return [[answer for one in self.by_text[text] for answer in one.answers] for text in batch.texts]

    def _first_scores(self, texts: Sequence[str]) -> list[Tensor]:
        """Scores [T] from states that are read once, a text at a time (so that what is kept does not depend on the batch), and kept as
        float16. Those steps train nothing that the states depend on: LoRA layers are still no change."""
        for text in texts:
            if text not in self._to_score:
                state_TF, ids = self.compressor.to_score(text, self.lm)
                self._to_score[text] = state_TF.half().cpu(), ids
        rows = [self._to_score[text] for text in texts]
        return [self.compressor.scores(state_TF.to(self.lm.device).float(), ids) for state_TF, ids in rows]

    def _answer_terms(self, batch: QuestionBatch, soft: Soft) -> dict[str, Tensor]:
        wanted, lm = self.settings.objectives, self.lm
        prompts = self.prompts.questions(batch.questions)
        answers = self.prompts.answers([one.answers[0] for one in batch.questions])
        teacher = guessed = None
        with torch.no_grad():
            if wanted.distill:
                whole = lm.embed_each(lm.tokens.encode([" " + text for text in batch.texts]))
                teacher = read_contexts(lm, whole, batch.row_of_N, preamble=self.preamble)
            if wanted.scheduled:
                read = read_soft(lm, soft, batch.row_of_N, self.preamble)
                hidden_AH = answer_hidden(lm, read, prompts, answers)
                guessed = guess(lm, hidden_AH, answers, wanted.scheduled, step_generator(self.seed + 1, batch.index))
        student = read_soft(lm, soft, batch.row_of_N, self.preamble)
        return answer_terms(wanted, lm, student, prompts, answers, teacher=teacher, guessed=guessed)

    def _held_out_loss(
        self, texts: list[str], questions: list[Question], ratio: int | None, *, read_from: Mapping[str, str] | None = None
    ) -> float:
        """Nats per answer token after each text's soft tokens (after those of another, `read_from`; without a ratio none)."""
        total, n, lm = 0.0, 0, self.lm
        for start in range(0, len(texts), self.settings.data.contexts):
            rows = texts[start : start + self.settings.data.contexts]
            own = [one for one in questions if one.text in rows]
            answers = self.prompts.answers([one.answers[0] for one in own])
            read = [read_from[text] for text in rows] if read_from else rows
            nothing = Soft([torch.zeros(0, lm.width, device=lm.device)] * len(rows), cue=self.compressor.cue)
            soft = self.compressor(read, lm, ratio).soft if ratio else nothing
            with self.compressor.silent(lm):
                student = read_soft(lm, soft, [rows.index(one.text) for one in own], self.preamble)
                terms = answer_terms(ObjectiveSettings(), lm, student, self.prompts.questions(own), answers)
            total += float(terms["answer"]) * sum(map(len, answers))
            n += sum(map(len, answers))
        return total / max(1, n)
