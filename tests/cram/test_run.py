"""Cramming with the stub LM: exactness, independence of texts, and a run that goes on to the bit."""

from __future__ import annotations

import pytest
import torch

from lsm.cram.reading import Reading
from lsm.cram.run import Crammer, Unit
from lsm.cram.settings import CramSettings, GrowthSettings, StageSettings
from lsm.cram.text import Target, Text
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM

SETTINGS = CramSettings(
    lm="stub",
    save_every=7,
    growth=GrowthSettings(first_tokens=2, max_tokens=6),
    stage=StageSettings(steps=20, lr=0.3, init_std=0.5),
)
TARGETS = [
    Target(name=name, kind="natural", ids=list(text.encode())) for name, text in (("one", "Fellow"), ("two", "aaaaab"), ("three", "I have"))
]


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return FrozenLM.load("stub")


class Stopped(Exception):
    pass


def crammer(lm, out, *, passes: int | None = None, settings: CramSettings = SETTINGS) -> Crammer:
    count = 0

    def notice(n: int, line: str) -> None:
        nonlocal count
        count += 1
        if count == passes:
            raise Stopped

    return Crammer(lm, settings, out, seed=0, notice=notice)


@pytest.mark.parametrize("form", ["autoregressive", "one-pass"])
def test_what_is_held_comes_back_word_for_word(lm, tmp_path, form):
    crammed = crammer(lm, tmp_path).cram(Unit(name="u", n_vectors=2, targets=TARGETS, form=form))
    assert sum(each.n_tokens for each in crammed) >= 4, "nothing was learnt"
    for each in crammed:
        given = Reading(lm, form).decode(each.vectors_PH[None], [max(1, each.n_tokens)])[0]
        assert given[: each.n_tokens] == each.target.ids[: each.n_tokens]
        failed = [stage for stage in each.numbers["stages"] if not stage["reached"]]
        too_long = [stage["target"] for stage in failed if stage["target"] > each.n_tokens]
        assert each.n_tokens == len(each.target.ids) or min(too_long) == each.n_tokens + 1
        assert each.n_tokens == max(stage["greedy_tokens"] for stage in each.numbers["stages"])
        assert all(stage["greedy_tokens"] < stage["target"] for stage in failed)
        assert all(stage["accuracy"] == 1 for stage in each.numbers["stages"] if stage["reached"])


def vectors_after(lm, *, divergence: float, kl_most: float = 0.25) -> tuple[Text, torch.Tensor]:
    """A text whose best vectors, not its last, wrote four of its six tokens when its only stage ended."""
    growth = GrowthSettings(first_tokens=6, max_tokens=6, restarts=1)
    text = Text(TARGETS[0], 1, lm.width, CramSettings(growth=growth, kl_most=kl_most), seed=0, device=lm.device)
    for n_right in (3, 5, 4):
        if n_right == 5:
            best_PH = text.vectors_PH.detach().clone()
        text.see(n_right, divergence)
        text.vectors_PH.grad = torch.ones_like(text.vectors_PH)
        text.step()
    text.end_stage(4)
    return text, best_PH


def test_what_failed_vectors_write_is_held(lm):
    text, best_PH = vectors_after(lm, divergence=0.0)
    assert text.growth.held == 4 and torch.equal(text.held_PH, best_PH)
    assert not text.stages[0].reached and text.stages[0].accuracy == 5 / 6


def test_failed_vectors_too_far_from_the_lm_hold_nothing(lm):
    text, best_PH = vectors_after(lm, divergence=0.3)
    assert text.growth.held == 0 and not torch.equal(text.held_PH, best_PH)


def test_a_first_target_that_failed_starts_from_other_vectors(lm):
    text, _ = vectors_after(lm, divergence=0.0)
    again, _ = vectors_after(lm, divergence=0.0)
    first = Text(TARGETS[0], 1, lm.width, CramSettings(), seed=0, device=lm.device)
    assert text.tokens == 6 and torch.equal(text.vectors_PH, again.vectors_PH)
    assert not torch.isclose(text.vectors_PH, first.vectors_PH).any()
    assert text.vectors_PH.std().item() == pytest.approx(CramSettings().stage.init_std, rel=0.2)


def test_texts_do_not_depend_on_those_beside_them(lm, tmp_path):
    together = crammer(lm, tmp_path / "a").cram(Unit(name="u", n_vectors=1, targets=TARGETS))
    alone = crammer(lm, tmp_path / "b").cram(Unit(name="u", n_vectors=1, targets=TARGETS[1:2]))[0]
    first = [(stage["target"], stage["reached"]) for stage in together[1].numbers["stages"]]
    assert first == [(stage["target"], stage["reached"]) for stage in alone.numbers["stages"]]
    assert together[1].n_tokens == alone.n_tokens


@pytest.mark.parametrize("passes", [1, 25])
def test_a_stopped_run_goes_on_to_the_bit(lm, tmp_path, passes):
    unit = Unit(name="u", n_vectors=1, targets=TARGETS, kl_weight=0.1)
    unbroken = crammer(lm, tmp_path / "unbroken").cram(unit)
    with pytest.raises(Stopped):
        crammer(lm, tmp_path / "broken", passes=passes).cram(unit)
    resumed = crammer(lm, tmp_path / "broken").cram(unit)
    for a, b in zip(unbroken, resumed, strict=True):
        assert torch.equal(a.vectors_PH, b.vectors_PH)
        assert a.numbers == b.numbers


def test_what_is_finished_is_read_and_not_made_again(lm, tmp_path):
    unit = Unit(name="u", n_vectors=1, targets=TARGETS[:1])
    made = crammer(lm, tmp_path).cram(unit)
    read = crammer(lm, tmp_path, passes=1).cram(unit)
    assert torch.equal(made[0].vectors_PH, read[0].vectors_PH) and made[0].numbers == read[0].numbers
    with pytest.raises(UserError, match="other texts"):
        crammer(lm, tmp_path).cram(Unit(name="u", n_vectors=1, targets=TARGETS[1:2]))


def test_the_kl_term_keeps_the_lm_nearer_to_itself(lm, tmp_path):
    settings = CramSettings(
        lm="stub",
        one_pass_texts=0,
        growth=GrowthSettings(first_tokens=6, max_tokens=6),
        stage=StageSettings(steps=20, lr=0.3, init_std=0.5),
    )
    last = {}
    for weight in (1e-9, 20.0):
        made = crammer(lm, tmp_path / str(weight), settings=settings).cram(
            Unit(name="u", n_vectors=1, targets=[Target(name="x", kind="natural", ids=TARGETS[0].ids)], kl_weight=weight)
        )
        last[weight] = made[0].numbers["stages"][0]["divergence"]
    assert last[20.0] < last[1e-9]
