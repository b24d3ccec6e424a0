"""GGUF to a transformers folder: the weights dequantised once to bf16 safetensors, with the tokenizer beside them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path


def dequantise(folder: Path, gguf_file: str) -> dict[str, str]:
    """Replace `folder/gguf_file` by the folder that `AutoModelForCausalLM.from_pretrained` reads.

    Returns:
        The versions of the packages that did it: the derived bytes may differ between them, the numbers do not.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf_file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    (folder / gguf_file).unlink()
    return {package: version(package) for package in ("transformers", "gguf", "torch")}
