"""Processes that measure: how they end, and what they say of their memory."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.bench.apart import OUT_OF_MEMORY, run_apart
from lsm.bench.peak_memory import PeakMemory
from lsm.errors import UserError

WAYS_TO_END = {
    "well": "",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "endless": "import time; time.sleep(60)",
    "refused": "import sys; print('--lm x: not there', file=sys.stderr); sys.exit(2)",
    "broken": "raise ValueError('ours')",
    "threads": "import os, sys; sys.exit(2 * (os.environ['OMP_NUM_THREADS'] != '3'))",
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in WAYS_TO_END.items():
        (tmp_path / f"ends_{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).resolve().parents[2]}")


def end(name: str, timeout_seconds: float = 60) -> str | None:
    return run_apart(f"ends_{name}", Path("job.json"), threads=3, timeout_seconds=timeout_seconds)


def test_how_a_process_ended_is_told() -> None:
    assert end("well") is None and end("threads") is None
    assert end("killed") == f"{OUT_OF_MEMORY} (ended by signal 9)"
    assert "not done after" in (end("endless", 0.3) or "")
    with pytest.raises(UserError, match=r"^--lm x: not there$"):
        end("refused")
    with pytest.raises(RuntimeError, match="ours"):
        end("broken")


def test_a_measurement_ends_with_its_parent() -> None:
    code = "from lsm.bench.apart import end_with_parent; end_with_parent(); print('ready', flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=30) == 1


def hold(mebibytes: int) -> None:
    """Fill fresh pages and give them back: what the heap has kept from other tests is left aside."""
    with mmap.mmap(-1, mebibytes * 2**20) as block:
        np.frombuffer(block, np.uint8)[:] = 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark cannot be set back here")
def test_peak_counts_from_its_beginning() -> None:
    hold(64)
    peak = PeakMemory(torch.device("cpu"))
    before = peak.mebibytes()
    hold(32)
    after = peak.mebibytes()
    assert before is not None and after is not None and before < 16 and 28 < after < 60
