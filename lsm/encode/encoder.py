"""What a sentence encoder is, and how a name becomes one; nothing heavy is imported before an encoder that needs it is loaded.

Shape letters: B texts, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from lsm.encode.model_folder import ModelFolder
from lsm.errors import UserError

if TYPE_CHECKING:
    from lsm.encode.static_encoders import StubEncoder, WordLlamaEncoder

Precision = Literal["auto", "float32", "bfloat16"]
Engine = Literal["auto", "torch", "openvino"]
CodeArrays = dict[str, np.ndarray]
"""Residual codes as a shard keeps them, by name (`lsm.corpus.format`); those of two batches are joined end to end."""


@dataclass(frozen=True)
class EncodedBatch:
    """What an encoder makes of B texts."""

    vectors: np.ndarray
    """float32 [B, D], as the frozen model puts them out."""
    n_tokens: np.ndarray
    """int32 [B]: tokens read, special ones included, never more than max_tokens."""
    truncated: np.ndarray
    """bool [B]: the text was longer than max_tokens and its end was not read."""
    residual: CodeArrays | None = None
    """Residual codes of the texts, where a run makes them too."""
    tokenise_seconds: float = 0.0
    """Of `encode_seconds`, for what is measured apart; 0 where the encoder does not tell."""
    encode_seconds: float = 0.0
    """From texts to vectors and codes, in the process that did it."""


class SentenceEncoder(Protocol):
    """A frozen text → vector model."""

    name: str
    dim: int
    max_tokens: int

    def fingerprint(self) -> dict[str, Any]:
        """name, revision, sha256, pooling, normalised, dtype, dim, max_tokens: what a corpus carries."""
        ...

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Vectors of any number of texts, in order; deterministic for one list of texts on one CPU with one thread count."""
        ...


@dataclass(frozen=True)
class EncoderInfo:
    """What is known of an encoder before its weights are loaded: enough to plan a run in a light process."""

    name: str
    fingerprint: dict[str, Any]
    device: str
    why: str
    """Why this device and this dtype."""
    fits: Callable[[str], bool] | None
    """Whether a text is within the token limit; None when only the loaded model could tell."""
    reads_context: bool = False
    """Whether it can read what stands before a text (`encode_in_context`)."""
    engine: Engine = "torch"
    """Who computes, where there is a choice."""


def load_encoder(name: str, *, device: str = "auto", precision: Precision = "auto", engine: Engine = "torch") -> SentenceEncoder:
    """Load an encoder by asset name, hub id or local folder (`stub`: a hash encoder without weights, for tests).

    Args:
        device: auto, cpu, cuda, cuda:1, mps.
        precision: dtype of the weights; auto takes bf16 where the hardware multiplies it natively.
        engine: torch, or what `encoder_info` has chosen.

    Raises:
        UserError: unknown name, a folder that holds no encoder, a device that is not there, or an engine that does not fit.
    """
    found = _static_encoder(name) or _model_folder(name)
    if not isinstance(found, ModelFolder):
        return found
    if found.why_not_fast is not None:
        from lsm.encode.sentence_transformers_encoder import SentenceTransformersEncoder

        return SentenceTransformersEncoder(found, device=device, precision=precision)
    if engine != "torch":
        engine, _ = choose_engine(found, device=device, precision=precision, wanted=engine)
    if engine == "openvino":
        from lsm.encode.openvino_encoder import OpenVinoEncoder

        return OpenVinoEncoder(found)
    from lsm.encode.transformer_encoder import TransformerEncoder

    return TransformerEncoder(found, device=device, precision=precision)


def encoder_info(name: str, *, device: str = "auto", precision: Precision = "auto", engine: Engine = "torch") -> EncoderInfo:
    """Fingerprint, device, engine and token limit of an encoder, from its files alone where that is possible."""
    static = _static_encoder(name)
    if static is not None:
        _refuse_openvino(engine, name, "has no network")
        return EncoderInfo(name, static.fingerprint(), "cpu", "needs no GPU, numpy only", static.fits)
    model = _model_folder(name)
    chosen, dtype, why = choose_precision(device, precision)
    if model.why_not_fast is not None:
        _refuse_openvino(engine, name, f"is run by sentence-transformers: {model.why_not_fast}")
        encoder = load_encoder(name, device=device, precision=precision)
        return EncoderInfo(name, encoder.fingerprint(), str(chosen), f"{why}; by sentence-transformers: {model.why_not_fast}", None)
    context = model.pooling == "mean"
    taken, why_engine = choose_engine(model, device=device, precision=precision, wanted=engine)
    if taken == "openvino":
        fingerprint = model.fingerprint("float32") | {"engine": taken}
        return EncoderInfo(name, fingerprint, "cpu", why_engine, model.fits(), reads_context=context, engine=taken)
    why = f"{why}; {why_engine}" if engine == "auto" else why
    return EncoderInfo(name, model.fingerprint(dtype), str(chosen), why, model.fits(), reads_context=context)


def choose_engine(model: ModelFolder, *, device: str, precision: Precision, wanted: Engine) -> tuple[Literal["torch", "openvino"], str]:
    """Who computes on this machine, and why; the graph that OpenVINO needs is made here if it is not in the cache.

    Raises:
        UserError: openvino was asked for where it is not installed, cannot convert the model, or where the device or the precision
            is not its own.
    """
    if wanted == "torch":
        return "torch", "engine torch asked for"
    from lsm.encode.openvino_graph import GraphDiffers, graph_of, openvino_installed

    chosen, dtype, _ = choose_precision(device, precision)
    if wanted == "openvino":
        if chosen.type != "cpu" and device != "auto":
            raise UserError(f"--engine openvino runs on the CPU here, --device is {device}; leave out one of the two")
        if precision == "bfloat16":
            raise UserError("--engine openvino computes in float32, --precision is bfloat16; leave out one of the two")
        graph_of(model)
        return "openvino", "engine openvino asked for: float32, a thread a worker"
    if chosen.type != "cpu" or dtype != "float32":
        return "torch", f"engine torch: it has {dtype} on this {chosen.type}"
    if not openvino_installed():
        return "torch", "engine torch: the extra lsm[openvino], faster in float32, is not installed"
    try:
        graph_of(model)
    except GraphDiffers as error:
        return "torch", f"engine torch: {str(error).partition('; take')[0]}"
    return "openvino", "engine openvino: the faster one in float32, and there is no native bf16 on this CPU"


def _refuse_openvino(engine: Engine, name: str, reason: str) -> None:
    if engine == "openvino":
        raise UserError(f"--engine openvino: encoder {name} {reason}; leave the flag out")


def choose_precision(device: str, precision: Precision) -> tuple[Any, str, str]:
    """The torch device, the name of the dtype, and why both."""
    from lsm.provenance import choose_device, fast_dtype

    chosen, why_device = choose_device(device)
    if precision != "auto":
        return chosen, precision, f"{why_device}; {precision} asked for"
    dtype, why_dtype = fast_dtype(chosen)
    return chosen, str(dtype).removeprefix("torch."), f"{why_device}; {why_dtype}"


def find_model(name: str) -> tuple[Path, str]:
    """Where the files of an encoder are, and the name to record for it (a local folder's own name, never its path)."""
    from lsm.assets import local_path, resolve

    path, label = local_path(name), name
    if path is not None:
        label = path.resolve().name
    else:
        path = resolve(name).path
    if not path.is_dir():
        raise UserError(f"--encoder {name}: {path.name} is a file; name a folder that holds a sentence-transformers or transformers model")
    return path, label


def _static_encoder(name: str) -> StubEncoder | WordLlamaEncoder | None:
    """The encoder when it is one without a network; None when the name stands for a model folder."""
    from lsm.encode.static_encoders import StubEncoder, WordLlamaEncoder

    if name in ("stub", "stub-slow"):
        return StubEncoder(slow=name == "stub-slow")
    folder, label = find_model(name)
    if not (folder / "config.json").exists() and not (folder / "modules.json").exists() and any(folder.rglob("*.safetensors")):
        return WordLlamaEncoder(folder, label)
    return None


def _model_folder(name: str) -> ModelFolder:
    return ModelFolder.read(*find_model(name))
