"""A worker process ends quietly with the one that asks it."""

from __future__ import annotations

import os
from multiprocessing import get_context

import pytest

from lsm.encode.worker import _encode, _serve, _Texts


@pytest.mark.parametrize("answered", [True, False], ids=["an answer lies unread", "an answer is being made"])
def test_a_worker_whose_parent_has_gone_ends_without_a_word(answered: bool, capfd: pytest.CaptureFixture) -> None:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, os.getpid(), ("stub" if answered else "stub-slow", "cpu", "float32"), None))
    process.start()
    theirs.close()
    ours.send((_encode, _Texts([f"Sentence {i}." for i in range(100)], None)))
    if answered:
        assert ours.poll(60)
    ours.close()
    process.join(60)
    assert process.exitcode == 0 and not capfd.readouterr().err
