"""The main job's script: every step's arguments are understood by its verb, and what is done is shown, not repeated."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lsm import cli
from lsm.files import write_json


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("main_job")


@pytest.mark.parametrize("size", ["small", "default", "full"])
def test_every_step_parses(script: ModuleType, size: str, tmp_path: Path) -> None:
    steps = script.plan(script.SIZES[size], tmp_path)
    for step in steps:
        verb, *arguments = step.arguments
        options = cli.parse(verb, importlib.import_module(cli.VERBS[verb].module).Options, [*arguments, "--json", str(tmp_path / "x.json")])
        assert options is not None
    assert len({step.name for step in steps}) == len(steps)


def test_held_out_speeches_are_not_trained_on(script: ModuleType, tmp_path: Path) -> None:
    for size in script.SIZES.values():
        by_name = {step.name: step.arguments for step in script.plan(size, tmp_path)}
        training, held_out = (by_name[name][1].removeprefix("sotu:").split("-") for name in ("encode-training", "encode-held-out"))
        assert int(training[0]) >= 0 and training[1] == held_out[0] and int(held_out[1]) == script.SPEECHES


def test_finished_steps_are_shown_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []

    def verb(arguments: list[str]) -> int:
        called.append(arguments)
        print("what the verb printed")
        write_json(Path(arguments[-1]), {})
        return 0 if len(called) != 2 else 2

    monkeypatch.setattr(script, "lsm", verb)
    step = script.Step("one", "first", ["doctor"])
    assert script.run(step, tmp_path) == 0 and script.run(step, tmp_path) == 0
    assert len(called) == 1
    assert capsys.readouterr().out.count("what the verb printed") == 2
    other = script.Step("one", "first", ["doctor", "--seed", "1"])
    assert script.run(other, tmp_path) == 2, "other arguments: done again, and this time it fails"
    assert script.run(other, tmp_path) == 0 and len(called) == 3


def test_the_plan_needs_no_network(script: ModuleType, run_cli: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["main_job.py", "--small", "--out", str(tmp_path)])
    monkeypatch.setattr(script, "lsm", lambda arguments: 2)
    assert script.main() == 2
