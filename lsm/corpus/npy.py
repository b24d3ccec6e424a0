"""npy files whose shape is known beforehand: written piece by piece, memory-mapped without parsing their header."""

from __future__ import annotations

import errno
import io
import mmap
import sys
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np


def write_npy(handle: IO[bytes], array: np.ndarray) -> None:
    """`np.save` that reports a full disk: `ndarray.tofile` loses the errno, a plain write keeps it."""
    handle.write(npy_header(array.shape, array.dtype.str))
    handle.write(array.tobytes())


@lru_cache(maxsize=64)
def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The bytes before the numbers of an npy file (version 1.0, C order); the numbers may follow in pieces.

    Args:
        dtype: as numpy writes it, with its byte order: `<f2`.
    """
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def map_npy(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The numbers of an npy file, memory-mapped and read-only; several times as fast as `np.load`, which counts over thousands of files.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds another shape or kind of numbers, or is cut short.
    """
    try:
        return _mapped(path, shape, dtype)
    except OSError as error:
        if error.errno != errno.EMFILE or not _allow_more_files():
            raise
        return _mapped(path, shape, dtype)


def _mapped(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    header = npy_header(shape, dtype)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with open(path, "rb", buffering=0) as handle:
        if handle.read(len(header)) == header:
            size = handle.seek(0, io.SEEK_END)
            if size != len(header) + n_bytes:
                raise ValueError(f"{size} bytes instead of {len(header) + n_bytes}")
            if n_bytes == 0:
                return np.zeros(shape, dtype)
            untracked = {"trackfd": False} if sys.version_info >= (3, 13) else {}
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ, **untracked)
            return np.frombuffer(mapped, dtype, offset=len(header)).reshape(shape)
    # Another writer may lay out its header in another way.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise ValueError(f"{array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}")
    return array.view(np.ndarray)


def _allow_more_files() -> bool:
    """Raise this process' limit of open files, often 1,024, as far as it may: before Python 3.13 every map holds one open."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**20 if hard == resource.RLIM_INFINITY else hard
    if soft >= most:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return True
