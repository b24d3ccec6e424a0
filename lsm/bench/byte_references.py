"""What a text costs without any vector: UTF-8, zstd alone, zstd with a dictionary, and arithmetic coding under the frozen LM.

Shape letters: N texts, B texts of a batch, T tokens, P start tokens, H hidden width of the LM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lsm.bench.text_metrics import ZSTD_LEVEL, to_bytes, utf8_bytes, zstd_bytes
from lsm.errors import UserError
from lsm.lm.tokens import opening_ids, pad_ids

if TYPE_CHECKING:
    from zstandard import ZstdCompressionDict

    from lsm.lm.frozen import FrozenLM

DICTIONARY_BYTES = 112_640
"""zstd's own default size."""
_SAMPLES_PER_DICTIONARY = 10
"""Bytes of samples for each byte of dictionary, at least: a dictionary of nearly all it saw is a copy."""
BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class ByteReferences:
    """Bytes of each text by each reference; None where its means were not given."""

    utf8_N: np.ndarray
    zstd_N: np.ndarray
    """Each text in a frame of its own."""
    zstd_dictionary_N: np.ndarray | None
    """The same with the dictionary, which the reader has already: its own bytes are not counted."""
    lm_bits_N: np.ndarray | None
    """−log₂ of the text's probability under the frozen LM, end token included."""
    dictionary_bytes: int | None

    @property
    def lm_bytes_N(self) -> np.ndarray | None:
        """What an arithmetic coder with this LM needs, in whole bytes (its own overhead of two bits left out)."""
        return None if self.lm_bits_N is None else np.ceil(self.lm_bits_N / 8)

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by the names they have in a scoreboard's row."""
        columns = {
            "utf8_bytes": self.utf8_N,
            "zstd_bytes": self.zstd_N,
            "zstd_dictionary_bytes": self.zstd_dictionary_N,
            "lm_entropy_bits": self.lm_bits_N,
            "lm_entropy_bytes": self.lm_bytes_N,
        }
        return {name: values_N for name, values_N in columns.items() if values_N is not None}


def measure(
    texts: Sequence[str],
    *,
    dictionary_texts: Sequence[str] | None = None,
    lm: FrozenLM | None = None,
    start_ids: Sequence[int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> ByteReferences:
    """All references of each text.

    Args:
        dictionary_texts: other text of the same kind to train the zstd dictionary on; those judged are left out of it.
        lm: the frozen LM whose entropy is asked for.
        start_ids, batch_tokens: see `lm_bits`.

    Raises:
        UserError: too little text for a dictionary, or a text longer than the LM reads.
    """
    dictionary = None if dictionary_texts is None else train_dictionary(dictionary_texts, leave_out=texts)
    return ByteReferences(
        utf8_N=utf8_bytes(texts),
        zstd_N=zstd_bytes(texts),
        zstd_dictionary_N=None if dictionary is None else zstd_bytes(texts, dictionary),
        lm_bits_N=None if lm is None else lm_bits(lm, texts, start_ids=start_ids, batch_tokens=batch_tokens),
        dictionary_bytes=None if dictionary is None else len(dictionary.as_bytes()),
    )


def train_dictionary(texts: Sequence[str], *, leave_out: Sequence[str] = (), size_bytes: int = DICTIONARY_BYTES) -> ZstdCompressionDict:
    """A zstd dictionary of texts, of `size_bytes` or a tenth of what there is; equal texts give an equal dictionary.

    Raises:
        UserError: zstd finds too little in them.
    """
    from zstandard import ZstdError, train_dictionary

    judged = set(leave_out)
    samples: list[bytes | bytearray | memoryview] = [to_bytes(text) for text in dict.fromkeys(texts) if text and text not in judged]
    total = sum(map(len, samples))
    try:
        dictionary = train_dictionary(min(size_bytes, total // _SAMPLES_PER_DICTIONARY), samples, level=ZSTD_LEVEL)
    except ZstdError as error:
        raise UserError(
            f"{len(samples)} other texts of {total} bytes are too few to train a zstd dictionary on ({error}); give more documents"
        ) from error
    dictionary.precompute_compress(level=ZSTD_LEVEL)
    return dictionary


@torch.inference_mode()
def lm_bits(lm: FrozenLM, texts: Sequence[str], *, start_ids: Sequence[int] | None = None, batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
    """Bits of each text under the LM [N]: Σ −log₂ p(token | those before), the end token last.

    The tokens are those of the LM's own tokenizer: other tokenisations of the text would add to its probability, so this is an upper bound.

    Args:
        start_ids: tokens read before the text, at no cost; None takes what the LM expects before every text, or one
            end token, as between two documents.
        batch_tokens: most padded tokens in one forward pass; memory is bounded by it and by the longest text.

    Raises:
        UserError: a text is longer than the LM reads.
    """
    start = opening_ids(lm.tokens) if start_ids is None else list(start_ids)
    assert start, "the first token needs something to be predicted from"
    rows = [[*row, lm.tokens.end_id] for row in lm.tokens.encode_exact(texts)]
    lengths = [len(row) for row in rows]
    limit = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    if limit and rows and max(lengths) + len(start) > limit:
        worst = int(np.argmax(lengths))
        raise UserError(f"text {worst} has {lengths[worst]} tokens, LM {lm.name} reads {limit}; cut it, or measure its sentences")
    bits_N = np.zeros(len(rows))
    prefix_PH = lm.embed(torch.tensor(start, device=lm.device))
    for batch in _batches(lengths, len(start), batch_tokens):
        ids_BT, mask_BT = (part.to(lm.device) for part in pad_ids([rows[n] for n in batch], lm.tokens.end_id))
        nats_B = lm.prefix_loss(prefix_PH.expand(len(batch), -1, -1), ids_BT, mask_BT) * mask_BT.sum(1)
        bits_N[batch] = nats_B.double().cpu().numpy() / math.log(2)
    return bits_N


def _batches(lengths: Sequence[int], start: int, batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of texts, longest first, so that texts of like length are padded together."""
    order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    first = 0
    while first < len(order):
        size = max(1, batch_tokens // (lengths[order[first]] + start))
        yield order[first : first + size]
        first += size
