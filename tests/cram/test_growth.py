"""The search for a capacity: which targets are tried, and that it ends at the right one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lsm.cram.growth import Growth
from lsm.cram.settings import CramSettings, GrowthSettings, StageSettings
from lsm.cram.text import rate


def search(limit: int, capacity: int, settings: GrowthSettings) -> tuple[Growth, list[int]]:
    growth, tried = Growth(limit), []
    while (target := growth.target(settings)) is not None:
        tried.append(target)
        growth.record(target, target if target <= capacity else 0, settings)
    return growth, tried


@hypothesis_settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 400), st.integers(1, 40), st.floats(1.05, 3.0))
def test_the_search_ends_at_the_capacity(limit, capacity, first, factor):
    settings = GrowthSettings(first_tokens=first, factor=factor, max_tokens=400, restarts=0)
    growth, tried = search(limit, capacity, settings)
    assert growth.held == min(limit, capacity)
    assert growth.failed is None or growth.failed == growth.held + 1
    assert len(tried) == len(set(tried)) <= Growth(limit).most_stages(settings)
    settings.restarts = 2
    again, more = search(limit, capacity, settings)
    assert again.held == growth.held and again.restarts == len(more) - len(tried) <= 2
    assert len(more) <= Growth(limit).most_stages(settings)
    assert all(1 <= target <= limit for target in tried)


def test_growth_is_geometric_and_then_halves():
    settings = GrowthSettings(first_tokens=8, factor=1.5, max_tokens=100)
    assert search(100, 20, settings)[1] == [8, 12, 18, 27, 22, 20, 21]


def test_a_first_target_is_tried_again_and_a_later_one_is_not():
    settings = GrowthSettings(first_tokens=8, restarts=2, max_tokens=100)
    assert search(100, 3, settings)[1] == [8, 8, 8, 4, 2, 3]
    assert search(100, 9, settings)[1] == [8, 12, 10, 9]


def test_tokens_that_failed_vectors_write_are_held():
    settings = GrowthSettings(first_tokens=12, restarts=1, resolution_tokens=3, max_tokens=64)
    growth = Growth(64)
    growth.record(12, 11, settings)
    assert (growth.held, growth.failed, growth.target(settings)) == (11, None, 12)
    growth.record(12, 4, settings)
    assert (growth.held, growth.failed, growth.target(settings)) == (11, 12, None)
    growth = Growth(64, held=18)
    growth.record(27, 20, settings)
    assert (growth.held, growth.target(settings)) == (20, 23)


def test_a_coarser_search_ends_sooner_and_below_the_capacity():
    growth, tried = search(100, 21, GrowthSettings(first_tokens=8, resolution_tokens=4, max_tokens=100))
    assert tried == [8, 12, 18, 27, 22] and growth.held == 18


def test_the_rate_falls_from_its_first_to_its_last_value():
    stage = StageSettings(steps=100, lr=0.1, lr_end=1e-3)
    rates = [rate(step, stage) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(1e-3)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("wrong", [{"texts": 0}, {"texts": -1}, {"one_pass_texts": 9}, {"kl_most": 0.0}, {"batch_texts": 0}])
def test_settings_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError):
        CramSettings(**wrong)
