"""Cramming itself: texts side by side, each growing its target until it no longer comes back word for word; resumable to the bit.

Shape letters: B texts, P vectors, H hidden width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from lsm.cram.reading import Form, Reading
from lsm.cram.settings import CramSettings
from lsm.cram.text import Target, Text
from lsm.errors import UserError
from lsm.files import DONE_MARKER, atomic_write, make_folder, read_json, remove_leftovers, write_json
from lsm.lm.tokens import n_agreeing

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

_STATE, _VECTORS, _PROGRESS = "state.safetensors", "vectors.safetensors", "progress"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """Texts that are optimised side by side: what is resumed, and done when its marker is there."""

    name: str
    n_vectors: int
    targets: list[Target]
    form: Form = "autoregressive"
    kl_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class Crammed:
    """What became of one text."""

    target: Target
    vectors_PH: Tensor
    """Those that give `n_tokens` back exactly, float32."""
    numbers: dict[str, Any]
    """Its search: growth, stages, trajectory, steps."""

    @property
    def n_tokens(self) -> int:
        return self.numbers["growth"]["held"]


class Crammer:
    """Optimises units under one LM; each has a folder with its state, later its vectors and its marker."""

    def __init__(self, lm: FrozenLM, settings: CramSettings, out: Path, *, seed: int, notice: Callable[[int, str], None]) -> None:
        """
        Args:
            notice: called after each step with the number of texts in it and a line about where they stand.
        """
        self.lm, self.settings, self.out, self.seed, self._notice = lm, settings, out, seed, notice

    def cram(self, unit: Unit) -> list[Crammed]:
        """The unit's texts with their vectors: optimised, gone on with, or read when its marker is there."""
        folder = self.out / unit.name
        if not (folder / DONE_MARKER).exists():
            make_folder(folder)
            remove_leftovers(folder)
            self._optimise(unit, folder)
        return _finished(unit, folder)

    def _optimise(self, unit: Unit, folder: Path) -> None:
        reading = Reading(self.lm, unit.form, start=self.settings.start_token)
        texts = [
            Text(target, unit.n_vectors, self.lm.width, self.settings, seed=self.seed, device=self.lm.device) for target in unit.targets
        ]
        passes = _restore(folder / _STATE, texts)
        while active := [text for text in texts if text.tokens is not None]:
            self._pass(reading, active, unit.kl_weight)
            passes += 1
            self._notice(len(active), f"{unit.name}: tokens held (right of those tried) " + " ".join(map(str, texts)))
            if passes % self.settings.save_every == 0:
                _save(folder / _STATE, texts, passes)
        with atomic_write(folder / _VECTORS) as handle:
            handle.write(save({str(n): text.held_PH.cpu().contiguous() for n, text in enumerate(texts)}))
        write_json(folder / DONE_MARKER, {"texts": [{"name": text.target.name} | text.state()[1] for text in texts]})
        (folder / _STATE).unlink(missing_ok=True)

    def _pass(self, reading: Reading, active: Sequence[Text], kl_weight: float) -> None:
        """Every text reaches its target, runs out of steps, or makes a step towards it."""
        rows = [text.target.ids[: text.tokens] for text in active]
        turns = [text.steps for text in active] if kl_weight else ()
        told = reading.told(torch.stack([text.vectors_PH for text in active]), rows, turns)
        n_right_B, divergence_B = told.n_right_B.tolist(), told.divergence_B.tolist()
        for text, n_right, divergence in zip(active, n_right_B, divergence_B, strict=True):
            text.see(n_right, divergence)
        ripe = [n_right_B[b] == len(row) and divergence_B[b] <= self.settings.kl_most for b, row in enumerate(rows)]
        written = self._greedy(reading, active, rows, [b for b, text in enumerate(active) if ripe[b] or text.out_of_steps])
        ended = {b: n for b, n in written.items() if n == len(rows[b]) or active[b].out_of_steps}
        if going := [b for b in range(len(active)) if b not in ended]:
            chosen = torch.tensor(going, device=told.loss_B.device)
            (told.loss_B + kl_weight * told.divergence_B)[chosen].sum().backward()
        for b, text in enumerate(active):
            if b in ended:
                text.vectors_PH.grad = None
                text.end_stage(ended[b])
            else:
                text.step()
        failed = [active[b] for b in ended if not active[b].stages[-1].reached and active[b].growth.failed is not None]
        self._choose_starts(reading, [text for text in failed if text.tokens is not None])

    @staticmethod
    @torch.no_grad()
    def _choose_starts(reading: Reading, failed: Sequence[Text]) -> None:
        """After a target that failed the next, shorter one starts from what failed or from what was held, whichever tells it better."""
        if not failed:
            return
        rows = [text.target.ids[: text.tokens] for text in failed]
        starts_BPH = torch.stack([*(text.vectors_PH for text in failed), *(text.held_PH for text in failed)])
        loss_B = reading.told(starts_BPH, rows + rows).loss_B.tolist()
        for text, at_hand, held in zip(failed, loss_B[: len(failed)], loss_B[len(failed) :], strict=True):
            if held < at_hand:
                text.vectors_PH.copy_(text.held_PH)

    @staticmethod
    def _greedy(reading: Reading, active: Sequence[Text], rows: Sequence[list[int]], which: list[int]) -> dict[int, int]:
        """Tokens that the stage's best vectors of some texts give back free-running before the first error."""
        if not which:
            return {}
        vectors_BPH = torch.stack([active[b].best_PH for b in which])
        given = reading.decode(vectors_BPH, [len(rows[b]) for b in which])
        return {b: n_agreeing(row, rows[b]) for b, row in zip(which, given, strict=True)}


def _save(path: Path, texts: Sequence[Text], passes: int) -> None:
    """One file, so that tensors and numbers cannot be of different moments."""
    states = [text.state() for text in texts]
    tensors = {f"{n}.{name}": value.cpu().contiguous() for n, (some, _) in enumerate(states) for name, value in some.items()}
    numbers = {"passes": passes, "texts": [numbers for _, numbers in states]}
    with atomic_write(path) as handle:
        handle.write(save(tensors, {_PROGRESS: json.dumps(numbers)}))


def _restore(path: Path, texts: Sequence[Text]) -> int:
    """Put the saved state back, if there is one; the number of passes made."""
    if not path.exists():
        return 0
    tensors, numbers = _load(path)
    if not numbers or len(numbers["texts"]) != len(texts):
        raise UserError(f"{path} holds another run's state; delete it, or choose another --out")
    for n, text in enumerate(texts):
        text.restore({name.split(".")[1]: value for name, value in tensors.items() if name.split(".")[0] == str(n)}, numbers["texts"][n])
    return numbers["passes"]


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            numbers = json.loads((handle.metadata() or {}).get(_PROGRESS, "{}"))
            return {name: handle.get_tensor(name) for name in handle.keys()}, numbers  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete its folder and run again") from error


def _finished(unit: Unit, folder: Path) -> list[Crammed]:
    numbers = read_json(folder / DONE_MARKER)["texts"]
    tensors, _ = _load(folder / _VECTORS)
    if [each["name"] for each in numbers] != [target.name for target in unit.targets] or len(tensors) != len(numbers):
        raise UserError(f"{folder} holds other texts than are asked for; choose another --out")
    return [Crammed(target, tensors[str(n)], numbers[n]) for n, target in enumerate(unit.targets)]
