"""GGUF to a transformers folder: the weights dequantised once to bf16 safetensors, with the tokenizer beside them."""

from __future__ import annotations

import contextlib
import io
from importlib.metadata import version
from pathlib import Path


def dequantise(folder: Path, gguf_file: str) -> dict[str, str]:
    """Replace `folder/gguf_file` by the folder that `AutoModelForCausalLM.from_pretrained` reads.

    Returns:
        The versions of the packages that did it: the derived bytes may differ between them, the numbers do not.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # transformers' GGUF reader draws a bar that no setting turns off
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf_file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # transformers leaves them readable by their owner only; a cache may be shared
    (folder / gguf_file).unlink()
    return {package: version(package) for package in ("transformers", "gguf", "torch")}
