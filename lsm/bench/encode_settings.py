"""What `lsm bench encode` measures: systems, sentences, a second Python. Imported by the command line: nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lsm.config import STRICT
from lsm.errors import UserError

REFERENCE = "st"
"""sentence-transformers as it comes: float32, its default batch size, all threads in one process."""
SYSTEMS = {
    REFERENCE: "sentence-transformers float32 (default)",
    "st-processes": "sentence-transformers float32, a process a core",
    "st-bfloat16": "sentence-transformers bfloat16",
    "st-onnx": "sentence-transformers ONNX float32",
    "st-onnx-int8": "sentence-transformers ONNX int8",
    "st-openvino": "sentence-transformers OpenVINO float32",
    "st-openvino-int8": "sentence-transformers OpenVINO int8",
    "lsm": "lsm, as encode-corpus chooses",
    "lsm-float32": "lsm, PyTorch float32",
    "lsm-bfloat16": "lsm, PyTorch bfloat16",
    "lsm-openvino": "lsm, OpenVINO float32",
}
"""What is measured, and what tables call it."""
BACKENDS = tuple(name for name in SYSTEMS if name.startswith(("st-onnx", "st-openvino")))
"""Those that want packages which may force an older transformers, and so a Python of their own."""


@dataclass(kw_only=True)
class EncodeBenchSettings:
    """Options of `lsm bench encode`: encoding speed and fidelity beside what one would use instead."""

    __pydantic_config__ = STRICT

    sentences: int = 2000
    """Distinct sentences that are encoded, an equal share of every INPUT."""
    sts: tuple[Path, ...] = ()
    """Files of pairs (.jsonl with sentence1, sentence2, score), for each system's rank correlation with people (STS-B)."""
    backends: str | None = None
    """Python of an environment with `pip install "sentence-transformers[onnx,openvino]"`, for the ONNX and OpenVINO rows; without it they
    are left out."""

    def __post_init__(self) -> None:
        if self.sentences < 10:
            raise UserError(f"--sentences {self.sentences}: must be at least 10")
