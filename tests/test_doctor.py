"""`lsm doctor`: ready or not, with the way out, as text and as JSON."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError

import pytest

from lsm.commands import doctor

MEASURE = doctor.matmul_flops


@pytest.fixture(autouse=True)
def quick_and_undemanding(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two-second timing, and any amount of memory and disk will do: the machine is not under test."""
    monkeypatch.setattr(doctor, "matmul_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(doctor, "NEEDED_FREE_BYTES", 0)
    monkeypatch.setattr(doctor, "NEEDED_MEMORY_BYTES", 0)


def test_ready(run_cli, empty_home, tmp_path):
    code, stdout, _ = run_cli("doctor", "--json", tmp_path / "doctor.json")
    assert code == 0, stdout
    assert stdout.endswith("ready\n") and "MEND" not in stdout
    assert "lsm assets pull minilm" in stdout and "LSM_OFFLINE" in stdout
    results = json.loads((tmp_path / "doctor.json").read_text())["results"]
    assert results["ready"] and {"python", "memory", "torch", "device", "precision"} <= {row["name"] for row in results["rows"]}


def test_missing_and_old_packages(run_cli, monkeypatch):
    installed = doctor.version

    def version(package: str) -> str:
        if package == "sacrebleu":
            raise PackageNotFoundError(package)
        return "4.57.0" if package == "transformers" else installed(package)

    monkeypatch.setattr(doctor, "version", version)
    code, stdout, _ = run_cli("doctor")
    assert code == 2
    report = stdout.partition("not ready:")[2]
    assert "pip install 'sacrebleu" in report and "pip install 'transformers" in report
    assert "4.57.0, wants" in stdout


def test_too_little_memory_or_disk(run_cli, monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED_FREE_BYTES", 1 << 60)
    monkeypatch.setattr(doctor, "NEEDED_MEMORY_BYTES", 1 << 60)
    code, stdout, _ = run_cli("doctor")
    assert code == 2
    assert "LSM_HOME" in stdout.partition("not ready:")[2] and "free some memory" in stdout


def test_device_that_is_not_there(run_cli):
    code, _, stderr = run_cli("doctor", "--device", "abacus")
    assert code == 2 and stderr.startswith("lsm: --device abacus")


def test_matrix_products_are_counted():
    import torch

    assert MEASURE(torch.device("cpu"), torch.float32, size=64, seconds=0.02) > 1e6
