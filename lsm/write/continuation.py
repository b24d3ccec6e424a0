"""Plan-then-write: a latent transformer plans sentence vectors after a document, a decoder words them, repetition is held down.

Shape letters: S sentences read, N sentences planned, D vector width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lsm.decode.decoders import Decoder
from lsm.decode.in_context import ReadsText
from lsm.decode.vectors import Encode
from lsm.latent.heads import VectorSampling
from lsm.latent.rollout import rollout
from lsm.latent.space import unit_parts
from lsm.write.snap import Snap

if TYPE_CHECKING:
    from lsm.latent.transformer import LatentTransformer


_ROUNDS = (1, 8)
"""Candidates asked for in one round after the other, in units of `RepetitionRules.attempts`."""


@dataclass(frozen=True, kw_only=True)
class RepetitionRules:
    """When a plan or a sentence counts as said before, and what is done about it."""

    largest_cosine: float = 0.98
    """A planned vector nearer than this to a recent one is turned away from it until it is not."""
    recent_sentences: int = 8
    """How many of the last vectors, read or planned, count as recent. Texts are compared with the whole document."""
    attempts: int = 8
    """Candidates asked of the decoder when its sentence has been said before (eight times as many if all of these have been)."""
    stop_after: int = 3
    """End the text when this many sentences in a row could not be worded anew."""


@dataclass
class Continuation:
    """What was planned and written."""

    texts: list[str] = field(default_factory=list)
    """The sentences written; fewer than asked for where repetition ended the text or left sentences out."""
    planned_ND: np.ndarray | None = None
    """All planned unit vectors, those of sentences left out among them."""
    plan_of_text: list[int] = field(default_factory=list)
    """Row of `planned_ND` that each sentence words."""
    n_turned: int = 0
    """Plans turned away from a recent vector."""
    n_reworded: int = 0
    """Sentences for which a later candidate was taken because the first had been said."""
    n_left_out: int = 0
    """Plans for which every candidate had been said."""
    ended: bool = False
    """Whether the plan came to an end of its own, before all were planned."""
    seconds: float = 0.0


def continue_document(
    model: LatentTransformer,
    z_SD: np.ndarray,
    decoder: Decoder,
    n_sentences: int,
    *,
    read: Sequence[str] = (),
    section_S: np.ndarray | None = None,
    encode: Encode | None = None,
    sampling: VectorSampling | None = None,
    snap: Snap | None = None,
    ending: Callable[[Tensor], bool] | None = None,
    rules: RepetitionRules | None = None,
    block: int | None = None,
    foresee: Callable[[np.ndarray, Tensor, Tensor], None] | None = None,
    seed: int = 0,
    on_sentence: Callable[[str], None] = lambda text: None,
) -> Continuation:
    """Write up to `n_sentences` after a document.

    Without `encode` all vectors are planned first and worded in one batch, or in blocks; with it each written sentence is re-encoded and
    read before the next is planned, so that the plan follows what the text says (slower: one decoder call a sentence). A decoder that reads
    the text so far (`lsm.decode.in_context`) sees what stands before each call: `read` alone in one batch, everything with `encode`.

    Args:
        z_SD: the document's sentence vectors, at least one.
        read: its sentences, which are not to be repeated.
        section_S: number of each one's section; the last is taken to go on.
        encode: the encoder of the run, to re-encode what is written.
        sampling: how the model draws its plans; None = those it expects.
        snap: replaces each planned unit vector before it is worded and read on (see `lsm.write.snap`).
        ending: whether a vector (planned, or read in its place) ends the document (`lsm.write.ending`); None goes on to `n_sentences`.
        block: plans worded in one batch, when all are planned first; None words all of them in one.
        foresee: called with each plan as it will be worded, what is read before it, and the sections of that (`lsm.write.forecast`).
        on_sentence: called with each sentence once it stands.
    """
    rules = rules or RepetitionRules()
    started = time.perf_counter()
    result = Continuation()
    writer = _Writer(decoder, rules, read, result, seed, on_sentence)
    recent = [_unit(torch.from_numpy(np.asarray(z_D, dtype=np.float32))) for z_D in z_SD[-rules.recent_sentences :]]
    plans: list[np.ndarray] = []

    def on_step(step: int, z_D: Tensor, before_SD: Tensor) -> Tensor | None:
        if snap is not None and encode is not None:
            writer.look_back()
        z_D = z_D.cpu() if snap is None else snap(z_D.cpu(), before_SD)
        turned_D = turn_away(z_D, recent[-rules.recent_sentences :], rules.largest_cosine, seed=seed + step)
        result.n_turned += turned_D is not None
        plan_D = z_D if turned_D is None else unit_parts(turned_D, model.config.parts)
        plans.append(plan_D.numpy())
        if foresee is not None:
            foresee(plans[-1], before_SD, torch.cat([sections, sections[-1:].repeat(step)])[-len(before_SD) :])
        read_D = plan_D
        if encode is not None and not writer.stopped:
            text = writer.write([plan_D.numpy()])[0]
            if text is not None:
                read_D = torch.from_numpy(np.asarray(encode([text])[0], dtype=np.float32))
        recent.append(_unit(read_D))
        return read_D

    sections = torch.zeros(len(z_SD), dtype=torch.int64) if section_S is None else torch.from_numpy(section_S)
    begun_SD = torch.from_numpy(np.asarray(z_SD, dtype=np.float32))

    def over(z_D: Tensor) -> bool:
        return writer.stopped or (ending is not None and ending(z_D))

    if snap is not None:
        writer.look_back()  # before the first plan is worded by a snap
    rollout(model, begun_SD, n_sentences, section_S=sections, sampling=sampling, on_step=on_step, until=over)
    result.planned_ND = np.stack(plans) if plans else np.zeros((0, z_SD.shape[1]), dtype=np.float32)
    result.ended = len(plans) < n_sentences and not writer.stopped
    if encode is None:
        size = block or max(1, len(plans))
        for start in range(0, len(plans), size):
            writer.write(plans[start : start + size])
    result.seconds = time.perf_counter() - started
    return result


class _Writer:
    """Words plans in order; keeps what has been said."""

    def __init__(
        self,
        decoder: Decoder,
        rules: RepetitionRules,
        read: Sequence[str],
        result: Continuation,
        seed: int,
        on_sentence: Callable[[str], None],
    ) -> None:
        self.decoder, self.rules, self.read, self.result, self.seed, self.on_sentence = decoder, rules, read, result, seed, on_sentence
        self.said = {_key(text) for text in read}
        self.stopped = False
        self._failed_in_a_row = self._n_seen = 0

    def write(self, plans: Sequence[np.ndarray]) -> list[str | None]:
        """The sentence for each plan, None where none was new; first attempts in one batch, and further ones in few."""
        self.look_back()
        z_ND = np.stack(plans)
        offered = [[first] for first in self.decoder.decode(z_ND, seed=self.seed)]
        tries = [list(_ROUNDS) for _ in plans]
        while lacking := [n for n in self._failing(offered) if tries[n]]:
            least = min(tries[n][0] for n in lacking)
            asked, attempts = [n for n in lacking if tries[n][0] == least], least * self.rules.attempts
            more = self.decoder.candidates(z_ND[asked], attempts, seed=self.seed + self._n_seen)
            for n, others in zip(asked, more, strict=True):
                fresh = [text for text in others if text not in offered[n]]
                offered[n] += fresh
                tries[n] = tries[n][1:] if fresh else []  # it has no more
        return [self._settle(texts) for texts in offered]

    def look_back(self) -> None:
        """Let a decoder that reads the text so far read it."""
        if isinstance(self.decoder, ReadsText):
            self.decoder.read([*self.read, *self.result.texts])

    def _failing(self, offered: Sequence[Sequence[str]]) -> list[int]:
        """Plans for which nothing new is offered, as far as the text would go."""
        said, failing, in_a_row = set(self.said), [], self._failed_in_a_row
        for n, texts in enumerate([] if self.stopped else offered):
            text = next((text for text in texts if _key(text) and _key(text) not in said), None)
            if text is None:
                failing.append(n)
                in_a_row += 1
                if in_a_row >= self.rules.stop_after:
                    break
            else:
                said.add(_key(text))
                in_a_row = 0
        return failing

    def _settle(self, offered: Sequence[str]) -> str | None:
        number = self._n_seen
        self._n_seen += 1
        if self.stopped:
            return None
        text = next((text for text in offered if self._is_new(text)), None)
        if text is None:
            self.result.n_left_out += 1
            self._failed_in_a_row += 1
            self.stopped = self._failed_in_a_row >= self.rules.stop_after
            return None
        self.result.n_reworded += text != offered[0]
        self._failed_in_a_row = 0
        self.said.add(_key(text))
        self.result.texts.append(text)
        self.result.plan_of_text.append(number)
        self.on_sentence(text)
        return text

    def _is_new(self, text: str) -> bool:
        return bool(_key(text)) and _key(text) not in self.said


def turn_away(z_D: Tensor, recent: Sequence[Tensor], largest_cosine: float, *, seed: int) -> Tensor | None:
    """The unit vector nearest to `z_D` that keeps `largest_cosine` from the recent vector nearest to it; None when it does already.

    The part of `z_D` that stands square on that vector is kept in direction and lengthened; where there is none, it is drawn from `seed`.
    """
    if not recent:
        return None
    z_D = _unit(z_D.float())
    nearest_D = max(recent, key=lambda other_D: float(other_D @ z_D))
    if float(nearest_D @ z_D) <= largest_cosine:
        return None
    across_D = z_D - (z_D @ nearest_D) * nearest_D
    if float(across_D.norm()) < 1e-3:
        drawn_D = torch.randn(len(z_D), generator=torch.Generator().manual_seed(seed))
        across_D = drawn_D - (drawn_D @ nearest_D) * nearest_D
    return largest_cosine * nearest_D + (1 - largest_cosine**2) ** 0.5 * _unit(across_D)


def _key(text: str) -> str:
    """What makes two sentences the same: letters and digits, whatever their case and spacing."""
    return "".join(character for character in text.casefold() if character.isalnum())


def _unit(z_D: Tensor) -> Tensor:
    return z_D / z_D.norm().clamp(min=1e-12)
