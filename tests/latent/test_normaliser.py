"""Promises of the normaliser: known values, one pass = whole, inverse = identity, saved = loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lsm.errors import UserError
from lsm.latent.normaliser import Kind, Normaliser

DATA = (np.random.default_rng(0).standard_normal((5000, 6)) * [1, 2, 3, 0.1, 5, 0] + 7).astype(np.float32)


def chunks(sizes: list[int]) -> list[np.ndarray]:
    return np.split(DATA, np.cumsum(sizes))


@given(st.lists(st.integers(0, 900), max_size=5))
@hypothesis_settings(max_examples=25, deadline=None)
def test_streaming_equals_whole(sizes: list[int]) -> None:
    fitted = Normaliser.fit(chunks(sizes), 6, "standard")
    np.testing.assert_allclose(fitted.centre, DATA.mean(0), rtol=1e-5)
    np.testing.assert_allclose(fitted.scale[:5], DATA.std(0)[:5], rtol=1e-4)
    robust = Normaliser.fit(chunks(sizes), 6, "robust")
    assert torch.equal(robust.centre, Normaliser.fit([DATA], 6, "robust").centre)
    np.testing.assert_allclose(robust.centre, np.median(DATA, 0), rtol=1e-5)
    np.testing.assert_allclose(robust.scale[:5], DATA.std(0)[:5], rtol=0.1)


@pytest.mark.parametrize("kind", ["standard", "robust", "none"])
def test_inverse_and_disk(tmp_path: Path, kind: Kind) -> None:
    fitted = Normaliser.fit([DATA], 6, kind)
    x = torch.from_numpy(DATA[:50])
    torch.testing.assert_close(fitted.inverse(fitted(x)), x, rtol=1e-4, atol=1e-4)
    fitted.save(tmp_path)
    assert torch.equal(Normaliser.load(tmp_path)(x), fitted(x))
    assert torch.isfinite(fitted(x)).all(), "a dimension that never varies"


def test_long_streams_keep_a_bounded_sample() -> None:
    stream = (np.random.default_rng(n).standard_normal((20_000, 2)).astype(np.float32) for n in range(10))
    fitted = Normaliser.fit(stream, 2, "robust")
    np.testing.assert_allclose(fitted.scale, 1.0, rtol=0.05)
    np.testing.assert_allclose(fitted.centre, 0.0, atol=0.03)


def test_bad_vectors() -> None:
    with pytest.raises(UserError, match="NaN or infinity"):
        Normaliser.fit([np.array([[1.0, np.nan]])], 2)
    with pytest.raises(UserError, match="no training vectors"):
        Normaliser.fit([], 2)
