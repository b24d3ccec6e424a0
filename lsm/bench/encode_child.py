"""One encoding system in a process of its own: `python encode_child.py SYSTEM MODEL THREADS CALIBRATION`, then one line of JSON a request.

It imports lsm for lsm's own systems only, so that another Python with another sentence-transformers can run this file by its path.
A request is {"texts": FILE, "vectors": FILE}; the answer {"seconds"} comes when the vectors lie there as npy. The first line out is
{"versions"} when the model is loaded and warm, or {"failed"} with the reason.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

Encode = Callable[[list[str]], np.ndarray]
"""Texts → vectors float32 [B, D]."""
_PACKAGES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "optimum", "nncf")
_WARM_TEXTS = 64


def main() -> None:
    system, model, threads, calibration = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    texts = json.loads(calibration.read_text(encoding="utf-8"))
    try:
        encode = load(system, model, threads, texts)
        for _ in range(2):
            encode(texts[:_WARM_TEXTS])
    except Exception as error:
        _say(answers, {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]})
        return
    _say(answers, {"versions": _versions()})
    for line in sys.stdin:
        request = json.loads(line)
        wanted = json.loads(Path(request["texts"]).read_text(encoding="utf-8"))
        began = perf_counter()
        vectors = encode(wanted)
        seconds = perf_counter() - began
        np.save(request["vectors"], vectors.astype(np.float32))
        _say(answers, {"seconds": seconds})


def load(system: str, model: str, threads: int, calibration: list[str]) -> Encode:
    """The `encode` of a system: `lsm[-float32|-bfloat16|-openvino]`, `st` (sentence-transformers as it comes), `st-processes`,
    `st-bfloat16`, `st-onnx[-int8]`, `st-openvino[-int8]`."""
    if system.startswith("lsm"):
        return _lsm(model, system.removeprefix("lsm").lstrip("-") or "auto", threads)
    import torch

    torch.set_num_threads(threads)
    kind = system.removeprefix("st").lstrip("-")
    if kind == "processes":
        return _processes(model, threads)
    makers: dict[str, Callable[[], Any]] = {
        "": lambda: _sentence_transformer(model),
        "bfloat16": lambda: _sentence_transformer(model, model_kwargs={"dtype": torch.bfloat16}),
        "onnx": lambda: _onnx(model, threads),
        "onnx-int8": lambda: _onnx_int8(model, threads),
        "openvino": lambda: _openvino(model, threads),
        "openvino-int8": lambda: _openvino_int8(model, threads, calibration),
    }
    loaded = makers[kind]()
    return lambda texts: np.asarray(loaded.encode(texts, show_progress_bar=False), dtype=np.float32)


def _lsm(model: str, how: str, threads: int) -> Encode:
    """As encode-corpus runs it: one single-threaded process a core, windows of texts."""
    from concurrent.futures import wait

    from lsm.encode.encoder import encoder_info
    from lsm.encode.plan import WINDOW_ROWS
    from lsm.encode.worker import EncodingPool

    precision: Any = how if how in ("float32", "bfloat16") else "auto"
    engine: Any = how if how in ("auto", "openvino") else "torch"
    info = encoder_info(model, precision=precision, engine=engine)
    pool = EncodingPool(threads, model, device=info.device, precision=precision, engine=info.engine).__enter__()
    wait([pool.encode(["warm"] * _WARM_TEXTS) for _ in range(4 * threads)])

    def encode(texts: list[str]) -> np.ndarray:
        share = min(-(-len(texts) // threads), WINDOW_ROWS)
        futures = [pool.encode(texts[first : first + share]) for first in range(0, len(texts), share)]
        return np.concatenate([future.result().vectors for future in futures])

    return encode


def _sentence_transformer(model: str, **how: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model, device="cpu" if "backend" in how else None, **how)


def _processes(model: str, threads: int) -> Encode:
    """sentence-transformers' own pool of processes, with one thread each."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    loaded = _sentence_transformer(model)
    pool = loaded.start_multi_process_pool(["cpu"] * threads)
    return lambda texts: np.asarray(loaded.encode(texts, pool=pool, chunk_size=-(-len(texts) // (2 * threads)), show_progress_bar=False))


def _onnx(model: str, threads: int, **how: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    how |= {"provider": "CPUExecutionProvider", "session_options": options}
    return _sentence_transformer(model, backend="onnx", model_kwargs=how)


def _onnx_int8(model: str, threads: int) -> Any:
    """Dynamic quantisation as sentence-transformers exports it, for the widest integer instructions of this machine."""
    import tempfile

    from sentence_transformers import export_dynamic_quantized_onnx_model

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    config = "avx512_vnni" if "avx512_vnni" in flags else "avx512" if "avx512f" in flags else "avx2"
    folder = tempfile.mkdtemp()
    plain = _onnx(model, threads)
    plain.save_pretrained(folder)
    export_dynamic_quantized_onnx_model(plain, config, folder)
    return _onnx(folder, threads, file_name=f"onnx/model_qint8_{config}.onnx" if config != "avx2" else "onnx/model_quint8_avx2.onnx")


def _openvino(model: str, threads: int) -> Any:
    config = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
    return _sentence_transformer(model, backend="openvino", model_kwargs={"ov_config": config})


def _openvino_int8(model: str, threads: int, calibration: list[str]) -> Any:
    """Static quantisation of weights and activations by NNCF, calibrated on texts that are not measured."""
    import nncf

    loaded = _openvino(model, threads)
    inner = loaded[0].model if hasattr(loaded[0], "model") else loaded[0].auto_model
    wanted = {key.get_any_name() for key in inner.model.inputs}
    rows = [
        {name: array for name, array in loaded.tokenizer([text], return_tensors="np").items() if name in wanted} for text in calibration
    ]
    inner.model = nncf.quantize(inner.model, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    inner.request = None
    inner.compile()
    return loaded


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _say(answers: Any, line: dict[str, Any]) -> None:
    answers.write(json.dumps(line) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
