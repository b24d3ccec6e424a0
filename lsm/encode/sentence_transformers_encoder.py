"""Every other encoder, through sentence-transformers itself: slower, but it knows all modules, prompts and poolings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm.encode.encoder import EncodedBatch, Precision, choose_precision
from lsm.encode.model_folder import ModelFolder

if TYPE_CHECKING:
    import torch


class SentenceTransformersEncoder:
    """Whatever `SentenceTransformer(folder)` loads; vectors as its `encode` gives them.

    Shape letters: B texts, D vector width.
    """

    def __init__(self, model: ModelFolder, *, device: str = "auto", precision: Precision = "auto") -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self.device, self.dtype, self.why = choose_precision(device, precision)
        self.model, self.name = model, model.name
        self._network = SentenceTransformer(
            str(model.path), device=str(self.device), model_kwargs={"dtype": getattr(torch, self.dtype)}, local_files_only=True
        )
        self.max_tokens = int(self._network.max_seq_length or model.max_tokens)
        self.dim = len(self._network.encode(["a"], show_progress_bar=False)[0])

    def fingerprint(self) -> dict[str, Any]:
        """The encoder's fingerprint."""
        return self.model.fingerprint(self.dtype) | {"dim": self.dim, "max_tokens": self.max_tokens}

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Vectors float32 [B, D]."""
        listed = list(texts)
        if not listed:
            return EncodedBatch(np.zeros((0, self.dim), np.float32), np.zeros(0, np.int32), np.zeros(0, bool))
        vectors = self._network.encode(listed, batch_size=64, show_progress_bar=False, convert_to_tensor=True).float().cpu().numpy()
        lengths = np.array([len(ids) for ids in self._network.tokenizer(listed, truncation=False, verbose=False)["input_ids"]])
        return EncodedBatch(vectors, np.minimum(lengths, self.max_tokens).astype(np.int32), lengths > self.max_tokens)

    def token_states(self, texts: Sequence[str], *, max_tokens: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """States of each token before pooling and their mask, as `TransformerEncoder.token_states` gives them."""
        from torch import bool as torch_bool
        from torch import ones
        from torch.nn.utils.rnn import pad_sequence

        whole, self._network.max_seq_length = self._network.max_seq_length, min(self.max_tokens, max_tokens or self.max_tokens)
        try:
            rows = self._network.encode(list(texts), output_value="token_embeddings", convert_to_numpy=False, show_progress_bar=False)
        finally:
            self._network.max_seq_length = whole
        masks = [ones(len(row), dtype=torch_bool, device=self.device) for row in rows]
        return pad_sequence([row.detach().float() for row in rows], batch_first=True), pad_sequence(masks, batch_first=True)

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each whole text, int64 [B], special ones included, whatever the limit."""
        return np.array([len(ids) for ids in self._network.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]], np.int64)
