"""The OpenVINO graph of an encoder: made once from the PyTorch network, checked against it, and kept in the asset cache.

Shape letters: B texts of a batch, T tokens, H hidden width.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm.assets import home
from lsm.encode.model_folder import ModelFolder
from lsm.errors import UserError, missing_extra
from lsm.files import atomic_folder, make_folder, write_json
from lsm.progress import say

if TYPE_CHECKING:
    import torch

_GRAPH, _MARKER = "graph.xml", "done.json"
_TOLERANCE = 1e-5
"""Largest difference to PyTorch's vectors, of the longest of them; rounding is a hundredth of it."""
_TRACED, _CHECKED = (3, 9), ((1, 5), (5, 23), (2, 40))
"""Batches [B, T] that the network is traced with, and those that the graph is checked with: a trace may have kept a size."""


class GraphDiffers(UserError):
    """The graph does not compute what the network computes."""


def openvino_installed() -> bool:
    """Whether the extra is there."""
    return find_spec("openvino") is not None


def graph_of(model: ModelFolder) -> Path:
    """The graph's file: inputs ids_BT, mask_BT and, for mean pooling, pooled_BT (places that count), each int64; output the vectors [B, H].

    The first process makes it while others wait.

    Raises:
        GraphDiffers: OpenVINO cannot convert this network, or what it makes of it computes something else.
        UserError: the extra is missing, or the cache cannot be written.
    """
    from filelock import FileLock

    if not openvino_installed():
        raise missing_extra("openvino", "openvino")
    folder = home() / "graphs" / f"{model.sha256}-openvino-{version('openvino')}"
    if (folder / _MARKER).exists():
        return folder / _GRAPH
    try:
        make_folder(folder.parent)
    except OSError as error:
        raise UserError(f"cannot make {folder.parent}: {error.strerror}; set LSM_HOME to a folder that can be written") from error
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not (folder / _MARKER).exists():
            say(f"making the OpenVINO graph of {model.name}, once")
            with atomic_folder(folder) as staging:
                _make(model, staging / _GRAPH)
                write_json(staging / _MARKER, {"encoder": model.fingerprint("float32"), "openvino": version("openvino")})
    return folder / _GRAPH


def compiled(graph: Path) -> Any:
    """An inference request on one thread in float32.

    Raises:
        UserError: the file is damaged.
    """
    import openvino

    core = openvino.Core()
    how = {
        "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # workers would all be pinned to the first core
    }  # fmt: skip
    try:
        return core.compile_model(core.read_model(graph), "CPU", how).create_infer_request()
    except RuntimeError as error:
        raise UserError(f"{graph} cannot be read ({' '.join(str(error).split())[:200]}); delete its folder, it is made again") from error


def infer(request: Any, *inputs_BT: np.ndarray) -> np.ndarray:
    """Vectors [B, H] of a batch; the caller may keep them."""
    request.infer(list(inputs_BT), share_inputs=True)
    return request.get_output_tensor(0).data.copy()


def network_with_pooling(model: ModelFolder) -> torch.nn.Module:
    """The encoder as one PyTorch module, in float32, from token ids to vectors."""
    import torch
    import transformers

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            how = {"dtype": torch.float32, "attn_implementation": "sdpa", "local_files_only": True}
            self.network = transformers.AutoModel.from_pretrained(model.root, **how)

        def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, pooled_BT: torch.Tensor | None = None) -> torch.Tensor:
            hidden_BTH = self.network(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
            if pooled_BT is None:
                vector_BH = hidden_BTH[:, 0]
            else:
                counts_BT = pooled_BT.to(hidden_BTH.dtype)
                vector_BH = (hidden_BTH * counts_BT[..., None]).sum(dim=1) / counts_BT.sum(dim=1, keepdim=True)
            return torch.nn.functional.normalize(vector_BH, dim=-1) if model.normalised else vector_BH

    return Pooled().eval()


def _make(model: ModelFolder, path: Path) -> None:
    import torch

    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    import openvino

    network, n_inputs = network_with_pooling(model), 3 if model.pooling == "mean" else 2
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a trace may keep: the graph is checked below
            graph = openvino.convert_model(network, example_input=tuple(torch.from_numpy(one) for one in _batch(_TRACED)[:n_inputs]))
        graph.reshape({place: [-1, -1] for place in range(n_inputs)})
        openvino.save_model(graph, path, compress_to_fp16=False)
        request = compiled(path)
        for shape in _CHECKED:
            batch = _batch(shape)[:n_inputs]
            with torch.no_grad():
                wanted_BH = network(*(torch.from_numpy(one) for one in batch)).numpy()
            off = float(np.abs(infer(request, *batch) - wanted_BH).max() / np.linalg.norm(wanted_BH, axis=1).max())
            if not off < _TOLERANCE:
                raise GraphDiffers(f"the OpenVINO graph of {model.name} is {off:.1e} off PyTorch's vectors; take --engine torch")
    except GraphDiffers:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise GraphDiffers(f"OpenVINO cannot convert {model.name} ({type(error).__name__}: {reason}); take --engine torch") from error


def _batch(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, a mask under which rows end at different places, and places that count: all but the second, as with text before."""
    B, T = shape
    ids_BT = np.random.default_rng(B).integers(0, 50, shape)
    mask_BT = (np.arange(T) < T - np.arange(B)[:, None] % (T // 2)).astype(np.int64)
    return ids_BT, mask_BT, mask_BT * (np.arange(T) != 1)
