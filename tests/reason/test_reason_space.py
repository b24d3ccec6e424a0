"""Paths, clusters and collapse of idea vectors: known values."""

from __future__ import annotations

import numpy as np
import pytest

from lsm.bench.idea_space import agreement, between, collapse, map_ideas, pairwise_cosine
from lsm.decode.vectors import unit
from lsm.text.lead import choose_lead, lead
from lsm.text.pairs import Pair


def random(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def test_a_path_keeps_to_the_sphere_at_equal_steps() -> None:
    a_D, b_D = random(2)
    path_PD = between(a_D, b_D, 7)
    np.testing.assert_allclose(np.linalg.norm(path_PD, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(path_PD[[0, -1]], [a_D, b_D], atol=1e-6)
    steps = (path_PD[1:] * path_PD[:-1]).sum(1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)
    np.testing.assert_allclose(between(a_D, a_D, 3), np.stack([a_D] * 3), atol=1e-6)


def test_pairwise_cosine_is_the_mean_over_pairs() -> None:
    z_ND = random(9)
    cosines = [z_ND[i] @ z_ND[j] for i in range(9) for j in range(i)]
    assert pairwise_cosine(3 * z_ND) == pytest.approx(np.mean(cosines), abs=1e-5)
    assert pairwise_cosine(np.stack([z_ND[0]] * 4)) == pytest.approx(1, abs=1e-5)


def test_collapse_is_named_and_only_then() -> None:
    assert collapse(0.3, 90, 100) is None
    assert "idea vectors" in str(collapse(0.999, 90, 100))
    assert "2 different texts of 100" in str(collapse(0.3, 2, 100))


def test_agreement_of_a_space_with_itself_and_with_noise() -> None:
    z_ND = random(30)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))
    assert agreement(z_ND, z_ND @ rotation) == pytest.approx(1, abs=1e-3)
    assert abs(agreement(z_ND, random(30, seed=5))) < 0.25


def test_a_map_finds_what_was_put_in() -> None:
    centres_3D, number_N = random(3), np.repeat(np.arange(3), 10)
    z_ND = unit(centres_3D[number_N] + 0.05 * np.random.default_rng(3).standard_normal((30, 16)))
    found = map_ideas(z_ND, clusters=3, seed=0)
    assert all(len(set(found.cluster_N[number_N == n].tolist())) == 1 for n in range(3)) and len(set(found.cluster_N.tolist())) == 3
    assert found.silhouette > 0.7 and sum(found.pca_explained) > 0.8
    assert (unit(found.centres_KD) @ centres_3D.T).max(1).min() > 0.97
    assert found.pca_N2.shape == found.tsne_N2.shape == (30, 2)
    np.testing.assert_array_equal(map_ideas(z_ND, clusters=3, seed=0).cluster_N, found.cluster_N)


def test_lead_is_as_long_as_targets_are() -> None:
    turns = [Pair("a", "A: one two three.\nB: four five.\nA: six.", ("seven words stand in this target here",))] * 3
    assert choose_lead(turns) == {"unit": "turns", "k": 2}
    assert lead(turns[0].text, unit="turns", k=2) == "A: one two three. B: four five."
    prose = [Pair("a", "One two three. Four five six. Seven eight nine.", ("one two three",))]
    assert choose_lead(prose) == {"unit": "sentences", "k": 1}
    assert lead(prose[0].text, unit="sentences", k=1) == "One two three."
