"""OpenVINO as the engine of the fast path: the batches of `TransformerEncoder`, in float32 on one thread of a CPU.

Shape letters: B texts of a batch, T tokens, D vector width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lsm.encode.model_folder import ModelFolder
from lsm.encode.openvino_graph import compiled, graph_of, infer
from lsm.encode.transformer_encoder import BATCH_TOKENS, TransformerEncoder, length_batches, padded


class OpenVinoEncoder(TransformerEncoder):
    """The same vectors as PyTorch's in float32 up to rounding, in about an eighth less time where bf16 is not at hand.

    For encoding only: what trains on top of word pieces (`token_states`) loads the PyTorch network.
    """

    def __init__(self, model: ModelFolder) -> None:
        super().__init__(model, device="cpu", precision="float32")

    def _open(self) -> None:
        self._request = compiled(graph_of(self.model))

    def fingerprint(self) -> dict[str, Any]:
        """The encoder's fingerprint; the engine is in it, so that no corpus mixes two."""
        return super().fingerprint() | {"engine": "openvino"}

    def _vectors(self, ids: list[list[int]], passed_over: list[slice] | None = None) -> np.ndarray:
        out_BD = np.empty((len(ids), self.dim), np.float32)
        for batch in length_batches([len(row) for row in ids], BATCH_TOKENS["cpu"]):
            ids_BT, mask_BT = padded([ids[row] for row in batch], self.model.pad_id)
            pooled_BT = mask_BT.copy()
            for row, places in enumerate(passed_over[number] for number in batch) if passed_over else ():
                pooled_BT[row, places] = 0
            inputs = (ids_BT, mask_BT, pooled_BT) if self.model.pooling == "mean" else (ids_BT, mask_BT)
            out_BD[batch] = infer(self._request, *inputs)
        return out_BD
