"""The file of soft tokens: what is read back lies within half a step, every byte is counted, and damage is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm.codes.soft_file import BITS, HEADER_BYTES, Wire, pack, payload_bytes, unpack
from lsm.errors import UserError

codes = st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 300.0]))


@settings(max_examples=80, deadline=None)
@given(st.lists(codes, min_size=1, max_size=3), st.sampled_from(BITS), st.integers(1, 70), st.text(max_size=8))
def test_read_back_within_half_a_step(shapes: list[tuple[int, int, int, float]], bits: int, group: int, head: str) -> None:
    width = shapes[0][1]
    rows = [(np.random.default_rng(seed).standard_normal((n, width)) * size).astype(np.float32) for n, _, seed, size in shapes]
    wire = Wire(bits, group, 4, "a" * 64, "b" * 64, rows, [head] * len(rows))
    data = pack(wire)
    back = unpack(data, origin="it")
    assert (back.bits, back.group, back.ratio, back.lm_sha256, back.heads) == (bits, group, 4, "a" * 64, [head] * len(rows))
    assert len(data) == HEADER_BYTES + sum(payload_bytes(len(row), width, bits, group, head) for row in rows)
    for row, found in zip(rows, back.codes, strict=True):
        assert found.shape == row.shape
        flat, read = row.ravel(), found.ravel()
        for start in range(0, len(flat), group):
            own = flat[start : start + group]
            step = np.abs(own).max() / (2 ** (bits - 1) - 1)
            # float16 rounds the scale by at most 2^-11, below its smallest normal number by 2^-25.
            assert np.abs(own - read[start : start + group]).max() <= step * 0.51 + np.abs(own).max() * 2**-10 + 2**-17
    assert pack(Wire(bits, group, 4, "a" * 64, "b" * 64, back.codes, back.heads)) == pack(
        Wire(bits, group, 4, "a" * 64, "b" * 64, unpack(pack(back), origin="it").codes, back.heads)
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_one_clear_line(data: st.DataObject) -> None:
    whole = pack(Wire(6, 16, 8, "", "", [np.ones((3, 5), np.float32)], ["x"]))
    if data.draw(st.booleans()):
        broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        broken = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    with pytest.raises(UserError, match=r"file|damaged|version") as caught:
        unpack(broken, origin="x.lsmc")
    assert "\n" not in str(caught.value) and "x.lsmc" in str(caught.value)
