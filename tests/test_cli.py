"""The command line: what --help shows and imports, exit codes, error lines, --json, --config with overrides."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lsm import __version__, cli, commands
from lsm.commands import VERBS, Verb
from lsm.config import STRICT, CommonOptions
from lsm.errors import UserError

HEAVY = ("torch", "transformers", "sentence_transformers", "datasets", "faiss", "matplotlib")


@dataclass(kw_only=True)
class OptimizerSettings:
    """Settings inside settings."""

    __pydantic_config__ = STRICT
    lr: float = 1e-3
    """Learning rate."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"--optimizer.lr {self.lr}: give a number above 0")


@dataclass(kw_only=True)
class Settings:
    """Settings of the verb `try`."""

    __pydantic_config__ = STRICT
    steps: int = 100
    """Steps."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of the verb `try`."""

    corpus: Path
    """A corpus."""
    config: Path | None = None
    """YAML with settings."""
    settings: Settings = field(default_factory=Settings)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], dict[str, Any]]], None]:
    """`verb(run)` installs a verb `try` with the options above."""

    def install(run: Callable[[Any], dict[str, Any]]) -> None:
        monkeypatch.setitem(commands.VERBS, "try", Verb("tests_try", "a verb of this test"))
        monkeypatch.setitem(sys.modules, "tests_try", SimpleNamespace(Options=Options, run=run))

    return install


def _settings(options: Options) -> dict[str, Any]:
    return {"steps": options.settings.steps, "lr": options.settings.optimizer.lr}


def test_overview_lists_every_verb(run_cli):
    code, stdout, stderr = run_cli("--help")
    assert code == 0 and not stderr
    for name in VERBS:
        assert f"  {name} " in stdout
    assert run_cli()[0] == 2
    assert run_cli("--version")[:2] == (0, f"lsm {__version__}\n")


def test_overview_is_quick_and_imports_nothing_heavy():
    code = (
        f"import sys, lsm.cli; lsm.cli.main(['--help']); sys.exit(any(m in sys.modules for m in {(*HEAVY, 'tyro', 'pydantic', 'numpy')}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_verb_modules_import_nothing_heavy():
    code = (
        "import importlib, sys\nfrom lsm.commands import VERBS\n"
        "for verb in VERBS.values(): importlib.import_module(verb.module)\n"
        f"heavy = [m for m in {HEAVY} if m in sys.modules]\nprint(heavy)\nsys.exit(bool(heavy))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help(run_cli, name):
    code, stdout, _ = run_cli(name, "--help")
    assert code == 0
    assert f"usage: lsm {name}" in stdout
    for option in ("--json", "--device", "--seed", "--quiet"):
        assert option in stdout


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_options_and_run(name):
    module = importlib.import_module(VERBS[name].module)
    assert issubclass(module.Options, CommonOptions)
    assert callable(module.run)


def test_unknown_verb_names_the_nearest(run_cli):
    assert run_cli("encode-corps") == (2, "", "lsm: no verb 'encode-corps'; did you mean: lsm encode-corpus\n")
    assert run_cli("xyzzy")[0] == 2


def test_usage_errors_are_one_line(run_cli, verb):
    verb(_settings)
    for arguments, words in [
        (("--corpus", "x", "--stepps", "3"), ("--stepps", "--steps")),
        (("--steps", "3"), ("--corpus",)),
        (("--corpus", "x", "--steps", "many"), ("many",)),
        (("--corpus", "x", "--optimizer.lr", "0"), ("--optimizer.lr", "above 0")),
    ]:
        code, stdout, stderr = run_cli("try", *arguments)
        assert code == 2 and not stdout
        assert stderr.startswith("lsm: ") and stderr.count("\n") == 1 and "│" not in stderr
        assert all(word in stderr for word in words), stderr


def test_config_gives_defaults_and_options_override_them(run_cli, verb, tmp_path):
    verb(_settings)
    config, result = tmp_path / "run.yaml", tmp_path / "result.json"
    config.write_text("steps: 7\noptimizer:\n  lr: 3e-4\n")

    def outcome(*arguments: object) -> dict[str, Any]:
        assert run_cli("try", "--corpus", "x", "--json", result, *arguments).code == 0
        return json.loads(result.read_text())["results"]

    assert outcome() == {"steps": 100, "lr": 1e-3}
    assert outcome("--config", config) == {"steps": 7, "lr": 3e-4}
    assert outcome(f"--config={config}", "--optimizer.lr", "0.5") == {"steps": 7, "lr": 0.5}
    assert outcome("--steps", "9", "--config", config) == {"steps": 9, "lr": 3e-4}


def test_config_faults_are_user_errors(run_cli, verb, tmp_path):
    verb(_settings)
    config = tmp_path / "run.yaml"
    config.write_text("steps: 7\noptimizer:\n  rate: 3e-4\n")
    code, _, stderr = run_cli("try", "--corpus", "x", "--config", config)
    assert code == 2 and "optimizer.rate" in stderr and stderr.count("\n") == 1
    assert "does not exist" in run_cli("try", "--corpus", "x", "--config", tmp_path / "none.yaml").stderr


def test_json_report(run_cli, verb, tmp_path):
    verb(lambda options: {"rows": [1, 2]})
    path = tmp_path / "result.json"
    assert run_cli("try", "--corpus", "x", "--seed", "5", "--json", path).code == 0
    report = json.loads(path.read_text())
    assert report["results"] == {"rows": [1, 2]} and report["seed"] == 5
    assert {"schema", "lsm_version", "git", "versions", "device", "elapsed_seconds"} <= report.keys()
    assert run_cli("try", "--corpus", "x", "--json", tmp_path / "none" / "result.json").code == 2


def test_exit_codes(run_cli, verb):
    def fail(error: BaseException) -> Callable[[Any], dict[str, Any]]:
        def run(options: Any) -> dict[str, Any]:
            raise error

        return run

    verb(fail(UserError("corpus x does not exist;\n make it")))
    assert run_cli("try", "--corpus", "x") == (2, "", "lsm: corpus x does not exist; make it\n")
    verb(fail(KeyboardInterrupt()))
    code, _, stderr = run_cli("try", "--corpus", "x")
    assert code == 130 and "resume with the same command" in stderr
    verb(fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run_cli("try", "--corpus", "x")
    verb(lambda options: {"exit_code": 2})
    assert run_cli("try", "--corpus", "x").code == 2


def test_a_closed_pipe_is_quiet():
    """The pipe is closed before `lsm` writes: `true` reads nothing and is gone while Python still starts."""
    finished = subprocess.run(
        ["bash", "-c", 'set -o pipefail; { sleep 0.3; "$0" -m lsm --help; } | true', sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")


def test_main_is_what_python_m_runs():
    finished = subprocess.run([sys.executable, "-m", "lsm", "nothing"], capture_output=True, text=True, check=False)
    assert finished.returncode == 2 and finished.stderr.startswith("lsm: ")


def test_shipped_configs_go_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli._config_file("latent-small").is_file()
    assert cli._config_file("../configs/latent-small") == Path("../configs/latent-small")
    (tmp_path / "latent-small").touch()
    assert cli._config_file("latent-small") == Path("latent-small")


def test_cli_knows_its_options():
    assert cli._value_of("--config", ["--config", "a", "--config=b"]) == "b"
    assert cli._value_of("--config", ["--", "--config", "a"]) is None
