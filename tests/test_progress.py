"""Progress on a stream that is no terminal: timed lines that stay true when the total was estimated too low."""

from __future__ import annotations

import pytest

from lsm import progress


def test_an_estimate_that_is_passed_is_dropped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    with progress.Progress("encode", 10, "sentences") as shown:
        shown.advance(6)
        shown.advance(6, "note")
    before, after, last = capsys.readouterr().err.splitlines()
    assert "6/10 sentences" in before and "left" in before
    assert "12 sentences" in after and "left" not in after and "/10" not in after and after.endswith("note")
    assert last.startswith("encode: 12 sentences in ")


def test_what_is_left_goes_by_the_last_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    clock = iter([0.0, *(100.0 * n for n in range(1, 11)), *(1000.0 + n for n in range(1, 51)), 2000.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.Progress("train", 100, "steps") as shown:
        for _ in range(60):
            shown.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert "100.0 s each, 2 h 30 min left" in lines[9]  # ten slow steps, ninety to come
    assert "60/100 steps, 1.0 s each, 40 s left" in lines[-2]


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    with progress.Progress("encode", 10, "sentences", quiet=True) as shown:
        shown.advance(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "said"), [(7.6, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations_as_a_person_says_them(seconds: float, said: str) -> None:
    assert progress.duration(seconds) == said
