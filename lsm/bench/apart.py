"""A measurement in a process of its own: nothing that ran before it is in its memory, its caches or its thread pools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from lsm.errors import UserError
from lsm.progress import duration

OUT_OF_MEMORY = "not run to its end: out of memory"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def run_apart(module: str, job: Path, *, threads: int, timeout_seconds: float) -> str | None:
    """Run `python -m module job` and wait for it.

    Returns:
        None, or why it did not come to its end: killed by the system, or by us after `timeout_seconds`.

    Raises:
        UserError: it ended with 2, as a verb does; its last line on stderr is the message.
        RuntimeError: it failed in another way.
    """
    environment = os.environ | dict.fromkeys(_THREADS, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}
    began = time.monotonic()
    with (
        tempfile.TemporaryFile() as complaint,
        subprocess.Popen(
            [sys.executable, "-m", module, str(job)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaint, env=environment
        ) as process,
    ):
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return f"stopped: not done after {duration(time.monotonic() - began)}"
        finally:
            process.kill()
        complaint.seek(0)
        words = complaint.read().decode("utf-8", "replace").strip()
    if process.returncode == -signal.SIGKILL:
        return f"{OUT_OF_MEMORY} (ended by signal {-process.returncode})"
    if process.returncode == 2:
        raise UserError(words.splitlines()[-1] if words else f"{module} ended with 2")
    if process.returncode:
        raise RuntimeError(f"{module} failed ({process.returncode}):\n{words}")
    return None


def end_with_parent() -> None:
    """To be called by the module: it ends when `run_apart`'s process has died, so that it does not disturb the next measurement.

    The parent holds our standard input, which ends with it.
    """

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
