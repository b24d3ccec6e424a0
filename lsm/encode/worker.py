"""Worker processes that encode: one thread each, so that many workers give the same bits as one; they die with their parent.

A pipe and a waiting thread per process, instead of `ProcessPoolExecutor`: that one can hang for good when a worker is killed while its
shared queue is full (CPython issues 94777, 107219), and a worker that runs out of memory must end in a message.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from lsm.encode.contextual import encode_in_context
from lsm.encode.encoder import CodeArrays, EncodedBatch, Engine, Precision, SentenceEncoder, load_encoder
from lsm.errors import UserError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_PROBE_TEXTS = 96


Coder = Callable[[Sequence[str]], CodeArrays]
"""Texts → their residual codes."""
LoadCoder = Callable[[SentenceEncoder], Coder]
"""Given the frozen encoder, in each worker."""


class _Loaded(NamedTuple):
    encoder: SentenceEncoder
    coder: Coder | None


class _Texts:
    """Texts of one task, and what stands before each where it is read too."""

    def __init__(self, texts: list[str], before: list[str] | None) -> None:
        self.texts, self.before = texts, before

    def __getitem__(self, rows: slice) -> _Texts:
        return _Texts(self.texts[rows], None if self.before is None else self.before[rows])

    def __len__(self) -> int:
        return len(self.texts)


class WorkerDied(Exception):
    """A worker process ended without an answer: killed, most likely for memory."""


class EncodingPool:
    """`n` processes that each hold the encoder, started by the first task. A context manager: leaving it on an error kills them at once."""

    def __init__(
        self, n: int, name: str, *, device: str, precision: Precision, engine: Engine = "torch", load_coder: LoadCoder | None = None
    ) -> None:
        """`load_coder` is pickled and called in each worker: what it returns makes the residual codes of texts."""
        self._n, self._arguments, self._load_coder = n, (name, device, precision, engine), load_coder
        self._threads = ThreadPoolExecutor(n)
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._idle: SimpleQueue[Connection] = SimpleQueue()

    def __enter__(self) -> EncodingPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for process in self._processes:
                process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)  # a killed worker's pipe ends, and with it the wait of its thread
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join()

    def encode(self, texts: Sequence[str], before: Sequence[str] | None = None) -> Future[EncodedBatch]:
        """Encode one window of texts, each after the text `before` it where that is given (`encode_in_context`).

        Vectors come back as float16, what the corpus keeps. The future may raise `WorkerDied`.
        """
        self._started()
        return self._threads.submit(self._ask, _encode, _Texts(list(texts), None if before is None else list(before)))

    def probe(self, texts: Sequence[str], before: Sequence[str] | None = None) -> Future[float]:
        """Measure one worker: sentences per second on a few texts, after a first pass that loads and warms."""
        self._started()
        return self._threads.submit(self._ask, _probe, _Texts(list(texts), None if before is None else list(before))[:_PROBE_TEXTS])

    def _started(self) -> None:
        # In the caller's thread: the workers are told when the thread that started them ends.
        context = get_context("spawn")
        while len(self._processes) < self._n:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, os.getpid(), self._arguments, self._load_coder), daemon=True)
            with _one_thread_each():
                process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
            self._idle.put(ours)

    def _ask(self, task: Any, texts: _Texts) -> Any:
        connection = self._idle.get()
        try:
            connection.send((task, texts))
            answer = connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied from error
        finally:
            self._idle.put(connection)  # a dead one as well: whoever asks it next must not wait for ever
        if isinstance(answer, Exception):
            raise answer
        return answer


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


def _serve(connection: Connection, parent: int, arguments: tuple[str, str, Precision, Engine], load_coder: LoadCoder | None) -> None:
    """Life of a worker: load the encoder with the first task, answer until the pipe ends."""
    die_with(parent)
    encoder: _Loaded | None = None
    while True:
        try:
            task, texts = connection.recv()
        except (EOFError, OSError):  # the parent has gone; a message of ours that it left unread resets the pipe instead of ending it
            return
        try:
            encoder = encoder or _loaded(*arguments, load_coder)
            answer = task(encoder, texts)
        except UserError as error:
            answer = error
        except MemoryError:
            answer = WorkerDied()
        except Exception:
            answer = RuntimeError("in a worker process:\n" + traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return


def die_with(parent: int) -> None:
    """End this process when its parent, the process `parent`, ends; leave Ctrl-C and SIGTERM to the parent."""
    for number in (signal.SIGINT, signal.SIGTERM):  # what is sent to a whole group of processes reaches the parent, which ends us
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked to be told
            os._exit(1)


def _loaded(name: str, device: str, precision: Precision, engine: Engine, load_coder: LoadCoder | None) -> _Loaded:
    encoder = load_encoder(name, device=device, precision=precision, engine=engine)
    coder = load_coder(encoder) if load_coder is not None else None
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
    return _Loaded(encoder, coder)


def _encode(loaded: _Loaded, task: _Texts) -> EncodedBatch:
    began = time.perf_counter()
    batch = loaded.encoder.encode(task.texts) if task.before is None else encode_in_context(loaded.encoder, task.texts, task.before)
    residual = loaded.coder(task.texts) if loaded.coder is not None else None
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite and is refused by the writer
        z_BD = batch.vectors.astype(np.float16)
    seconds = {"tokenise_seconds": batch.tokenise_seconds, "encode_seconds": time.perf_counter() - began}
    return EncodedBatch(z_BD, batch.n_tokens, batch.truncated, residual, **seconds)


def _probe(loaded: _Loaded, texts: _Texts) -> float:
    _encode(loaded, texts[: max(1, len(texts) // 3)])
    start = time.perf_counter()
    _encode(loaded, texts)
    return len(texts) / max(time.perf_counter() - start, 1e-9)
