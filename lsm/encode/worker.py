"""Worker processes that encode: one thread each, so that many workers give the same bits as one; they die with their parent."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import numpy as np

from lsm.encode.encoder import EncodedBatch, Precision, SentenceEncoder, load_encoder

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_PROBE_TEXTS = 96

_encoder: SentenceEncoder | None = None


class EncodingPool:
    """`n` processes that each hold the encoder; use as a context manager. Leaving it on an error kills them at once."""

    def __init__(self, n: int, name: str, *, device: str, precision: Precision) -> None:
        self._arguments = (name, device, precision)
        self._executor = ProcessPoolExecutor(n, mp_context=get_context("spawn"), initializer=_start, initargs=(os.getpid(),))

    def __enter__(self) -> EncodingPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for process in list((getattr(self._executor, "_processes", None) or {}).values()):
                process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def encode(self, texts: Sequence[str]) -> Future[EncodedBatch]:
        """Encode one window of texts; vectors come back as float16, what the corpus keeps."""
        with _one_thread_each():
            return self._executor.submit(_encode, self._arguments, list(texts))

    def probe(self, texts: Sequence[str]) -> Future[float]:
        """Measure one worker: sentences per second on a few texts, after a first pass that loads and warms."""
        with _one_thread_each():
            return self._executor.submit(_probe, self._arguments, list(texts[:_PROBE_TEXTS]))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Children read these when they start, before any library of theirs is loaded."""
    before = {name: os.environ.get(name) for name in (*_THREADS, "TOKENIZERS_PARALLELISM")}
    os.environ.update(dict.fromkeys(_THREADS, "1"), TOKENIZERS_PARALLELISM="false")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked to be told
            os._exit(1)


def _loaded(name: str, device: str, precision: Precision) -> SentenceEncoder:
    global _encoder
    if _encoder is None:
        _encoder = load_encoder(name, device=device, precision=precision)
        if "torch" in sys.modules:
            import torch

            torch.set_num_threads(1)
    return _encoder


def _encode(arguments: tuple[str, str, Precision], texts: list[str]) -> EncodedBatch:
    batch = _loaded(*arguments).encode(texts)
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite and is refused by the writer
        return EncodedBatch(batch.vectors.astype(np.float16), batch.n_tokens, batch.truncated)


def _probe(arguments: tuple[str, str, Precision], texts: list[str]) -> float:
    encoder = _loaded(*arguments)
    encoder.encode(texts[: len(texts) // 3])
    start = time.perf_counter()
    encoder.encode(texts)
    return len(texts) / max(time.perf_counter() - start, 1e-9)
