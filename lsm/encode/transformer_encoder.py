"""The fast path for BERT-like encoders: tokenizers directly, batches of one length, no mask where none is needed, bf16 where it pays.

Shape letters: B texts of a batch, T tokens, H hidden width = D vector width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm.encode.encoder import EncodedBatch, Precision, choose_precision
from lsm.encode.model_folder import ModelFolder
from lsm.errors import UserError

if TYPE_CHECKING:
    import torch

WINDOW_TEXTS = 4096
"""Texts tokenised and sorted together; vectors of a longer list are those of its windows."""

BATCH_TOKENS = {"cpu": 2048, "cuda": 131072, "mps": 16384}
"""Padded tokens a batch. On CPU a batch should stay within the cache of one core (measured: 2048 best of 1024 … 8192)."""


class TransformerEncoder:
    """Transformer + mean or CLS pooling (+ normalisation), the same vectors as sentence-transformers up to rounding."""

    def __init__(self, model: ModelFolder, *, device: str = "auto", precision: Precision = "auto") -> None:
        from tokenizers import Tokenizer

        self.model, self.name, self.dim, self.max_tokens = model, model.name, model.dim, model.max_tokens
        self.device, self.dtype, self.why = choose_precision(device, precision)
        self._tokenizer = Tokenizer.from_file(str(model.root / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)
        self._open()

    def _open(self) -> None:
        """Load what `_vectors` computes with."""
        assert self.network is not None

    @cached_property
    def network(self) -> torch.nn.Module:
        """The frozen network, loaded when it is first asked for."""
        import torch
        import transformers
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        how = {"dtype": getattr(torch, self.dtype), "attn_implementation": "sdpa", "local_files_only": True}
        return transformers.AutoModel.from_pretrained(self.model.root, **how).to(self.device).eval()

    def fingerprint(self) -> dict[str, Any]:
        """The encoder's fingerprint."""
        return self.model.fingerprint(self.dtype)

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Vectors float32 [B, D] of any number of texts; equal texts within a window are encoded once."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        n_tokens, truncated = np.zeros(len(texts), np.int32), np.zeros(len(texts), bool)
        tokenise_seconds = 0.0
        for first in range(0, len(texts), WINDOW_TEXTS):
            window = texts[first : first + WINDOW_TEXTS]
            distinct = list(dict.fromkeys(window))
            place = {text: row for row, text in enumerate(distinct)}
            rows = np.array([place[text] for text in window])
            began = perf_counter()
            found = self._tokenizer.encode_batch(distinct)
            tokenise_seconds += perf_counter() - began
            span = slice(first, first + len(window))
            vectors[span] = self._vectors([encoding.ids for encoding in found])[rows]
            n_tokens[span] = np.array([len(encoding.ids) for encoding in found], np.int32)[rows]
            truncated[span] = np.array([bool(encoding.overflowing) for encoding in found])[rows]
        return EncodedBatch(vectors, n_tokens, truncated, tokenise_seconds=tokenise_seconds)

    def encode_in_context(self, texts: Sequence[str], before: Sequence[str]) -> EncodedBatch:
        """Vectors [B, D] of texts that are each read after the text `before` them, pooled over their own tokens and the special ones.

        What stands before is cut at its beginning where both together exceed the token limit; a text with nothing before it gets the
        vector of `encode`. `n_tokens` and `truncated` are of the text itself. The vectors are known as late chunking (Günther et al. 2024).

        Raises:
            UserError: the encoder pools its first token, which belongs to no text.
        """
        if self.model.pooling != "mean":
            raise UserError(f"encoder {self.name} takes the vector of its first token; vectors in context need mean pooling")
        found = self._tokenizer.encode_batch(list(texts))
        self._tokenizer.no_truncation()
        try:
            earlier = [encoding.ids for encoding in self._tokenizer.encode_batch(list(before), add_special_tokens=False)]
        finally:
            self._tokenizer.enable_truncation(self.max_tokens)
        ids, passed_over = [], []
        for encoding, read in zip(found, earlier, strict=True):
            first = 1 if encoding.special_tokens_mask[0] else 0  # behind the token that opens a text
            kept = read[max(len(read) - (self.max_tokens - len(encoding.ids)), 0) :]
            ids.append(encoding.ids[:first] + kept + encoding.ids[first:])
            passed_over.append(slice(first, first + len(kept)))
        n_tokens = np.array([len(encoding.ids) for encoding in found], np.int32)
        return EncodedBatch(self._vectors(ids, passed_over), n_tokens, np.array([bool(encoding.overflowing) for encoding in found], bool))

    def token_states(self, texts: Sequence[str], *, max_tokens: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network makes of each word piece, before pooling, for what is trained on top of it; the texts form one batch.

        Args:
            max_tokens: read no more of each text than this, special tokens included; None = the encoder's limit.

        Returns:
            states_BTD float32, zeros where a text has ended, and mask_BT bool (True = a piece); both on the encoder's device.
        """
        import torch

        self._tokenizer.enable_truncation(min(self.max_tokens, max_tokens or self.max_tokens))
        try:
            ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        finally:
            self._tokenizer.enable_truncation(self.max_tokens)
        with torch.no_grad():
            hidden_BTH, mask_BT = self._states(ids)
        if mask_BT is None:
            return hidden_BTH.float(), torch.ones(hidden_BTH.shape[:2], dtype=torch.bool, device=self.device)
        return hidden_BTH.float() * mask_BT[..., None], mask_BT.bool()

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each whole text, int64 [B], special ones included, whatever the limit."""
        self._tokenizer.no_truncation()
        try:
            return np.array([len(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))], np.int64)
        finally:
            self._tokenizer.enable_truncation(self.max_tokens)

    def pieces(self, texts: Sequence[str]) -> list[tuple[torch.Tensor, list[int]]]:
        """Of each text the states [T, D] of its word pieces, special ones left out, and the character at which each piece begins."""
        states_BTD, _ = self.token_states(texts)
        kept = []
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            own = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
            kept.append((states_BTD[row, own], [encoding.offsets[place][0] for place in own]))
        return kept

    def _vectors(self, ids: list[list[int]], passed_over: list[slice] | None = None) -> np.ndarray:
        """Vectors [B, D] of token ids; `passed_over` are places of each row that are read but not pooled."""
        import torch

        order: list[int] = []
        pieces: list[torch.Tensor] = []
        with torch.inference_mode():
            for batch in length_batches([len(row) for row in ids], BATCH_TOKENS[self.device.type]):
                pieces.append(self._forward([ids[row] for row in batch], passed_over and [passed_over[row] for row in batch]))
                order += batch
        out = np.empty((len(ids), self.dim), np.float32)
        out[order] = torch.cat(pieces).cpu().numpy()  # one transfer a window: a GPU never waits for one batch
        return out

    def _forward(self, ids: list[list[int]], passed_over: list[slice] | None) -> torch.Tensor:
        import torch

        hidden_BTH, mask_BT = self._states(ids)
        if passed_over and any(places.stop > places.start for places in passed_over):
            mask_BT = hidden_BTH.new_ones(hidden_BTH.shape[:2], dtype=torch.long) if mask_BT is None else mask_BT
            for row, places in enumerate(passed_over):
                mask_BT[row, places] = 0
        if self.model.pooling == "cls":
            pooled_BH = hidden_BTH[:, 0].float()
        elif mask_BT is None:
            pooled_BH = hidden_BTH.float().mean(dim=1)
        else:
            pooled_BH = (hidden_BTH.float() * mask_BT[..., None]).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)
        return torch.nn.functional.normalize(pooled_BH, dim=-1) if self.model.normalised else pooled_BH

    def _states(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Last hidden states [B, T, H] and the mask [B, T], None where all rows are of one length."""
        import torch

        ids_BT, mask = padded(ids, self.model.pad_id)
        mask_BT = None if mask.all() else torch.from_numpy(mask).to(self.device)
        output = self.network(input_ids=torch.from_numpy(ids_BT).to(self.device), attention_mask=mask_BT)
        return output.last_hidden_state, mask_BT


def padded(ids: list[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids as int64 [B, T] with padding behind them, and the mask [B, T], 1 = a token."""
    lengths_B = np.array([len(row) for row in ids])
    mask_BT = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
    ids_BT = np.full(mask_BT.shape, pad_id, np.int64)
    for row, some in enumerate(ids):
        ids_BT[row, : len(some)] = some
    return ids_BT, mask_BT


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows grouped so that nearly every batch has one length (no padding, no mask) and none exceeds the token budget.

    Rows of a length that do not fill half a batch are left over; those are padded together, longest first.
    """
    by_length: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        by_length.setdefault(length, []).append(row)
    left_over: list[int] = []
    for length in sorted(by_length, reverse=True):
        rows, size = by_length[length], max(1, batch_tokens // max(length, 1))
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            if 2 * len(batch) >= size:
                yield batch
            else:
                left_over += batch
    first = 0
    while first < len(left_over):
        size = max(1, batch_tokens // max(lengths[left_over[first]], 1))
        yield left_over[first : first + size]
        first += size
