"""Every command of the README's tour runs, in order, on less data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
SMALLER = {
    "corpora/": f"{README.parent / 'corpora'}/",
    "sotu:0-100": "sotu:0-3",
    "sotu:110-111": "sotu:5-6",
    "sotu:110-112": "sotu:5-6",
    "--config latent-small": "--config latent-small --steps 4 --optimizer.warmup-steps 1 --model.layers 1",
    "--config decoder-prefix": "--config decoder-tiny --steps 4 --lexical-stage.steps 2",
    "--prompt-sentences 20": "--prompt-sentences 3 --sentences 2",
    "--limit 50": "--limit 4",
    "sotu:0-2 ": "sotu:5-6 ",
    "--residual-dims 64,128 --limit 20": "--residual-dims 64 --prior none --limit 4",
}


def tour() -> list[str]:
    section = README.read_text(encoding="utf-8").split("## The tour")[1].split("\n## ")[0]
    return [line.split(" #")[0].strip() for line in section.splitlines() if line.startswith("    lsm ")]


def test_set_up_commands_exist() -> None:
    for script in re.findall(r"^    bash (\S+)", README.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert (README.parent / script).is_file(), script


@pytest.mark.real
def test_every_command_of_the_tour_runs(run_cli, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    commands = tour()
    assert len(commands) >= 10
    for command in commands:
        for text, smaller in SMALLER.items():
            command = command.replace(text, smaller)
        result = run_cli(*shlex.split(command)[1:])
        assert result[0] == 0, f"{command}: {result}"
