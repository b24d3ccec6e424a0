"""The frozen encoder's states of inputs and its vectors of targets: computed as they are wanted, or once and kept in the run's folder.

Shape letters: B rows, S tokens of the encoder, E encoder width, N all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from lsm.errors import UserError
from lsm.files import atomic_write, make_folder
from lsm.progress import Progress

_TEXTS_AT_ONCE = 8
"""Inputs that the encoder reads together on a CPU, of nearly one length."""
_ROWS_PER_FILE = 256


def token_rows(encoder: Any, texts: Sequence[str], max_tokens: int) -> list[Tensor]:
    """The states [S, E] of each text, each as long as it is."""
    at_once = _TEXTS_AT_ONCE if str(getattr(encoder, "device", "cpu")) == "cpu" else 64
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]), reverse=True)
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        for row, states_SE, mask_S in zip(rows, *encoder.token_states([texts[row] for row in rows], max_tokens=max_tokens), strict=True):
            found[row] = states_SE[mask_S]
    return [found[row] for row in range(len(texts))]


def padded(rows: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """States [B, S, E] float32, zeros behind the end, and mask [B, S]."""
    masks = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    return pad_sequence([row.float() for row in rows], batch_first=True).to(device), pad_sequence(masks, batch_first=True).to(device)


def target_vectors(encoder: Any, targets: Sequence[str]) -> Tensor:
    """The encoder's own vectors [B, E] of texts, of unit length."""
    return normalize(torch.from_numpy(encoder.encode(targets).vectors).float(), dim=-1)


class KeptStates:
    """States of all inputs in float16 and vectors of all targets, some rows a file; a file that is there is not computed again."""

    def __init__(self, folder: Path, encoder: Any, inputs: Sequence[str], targets: Sequence[str], max_tokens: int, *, quiet: bool) -> None:
        make_folder(folder)
        starts = range(0, len(inputs), _ROWS_PER_FILE)
        files = [folder / f"states-{start:08d}.safetensors" for start in starts]
        missing = [(path, slice(start, start + _ROWS_PER_FILE)) for path, start in zip(files, starts, strict=True) if not path.exists()]
        with Progress("encoder's states", len(missing), "files", quiet=quiet or not missing) as progress:
            for path, some in missing:
                rows = token_rows(encoder, inputs[some], max_tokens)
                lengths = torch.tensor([len(row) for row in rows])
                kept = {"states": torch.cat(rows).half().cpu(), "lengths": lengths, "vectors": target_vectors(encoder, targets[some])}
                with atomic_write(path) as handle:
                    handle.write(save(kept))
                progress.advance(1)
        self._states, self._vectors = [], []
        for path in files:
            try:
                kept = load_file(path)  # mapped, not read
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); delete it, and it is computed again") from error
            self._states.append(kept["states"].split(kept["lengths"].tolist()))
            self._vectors.append(kept["vectors"])

    def states(self, numbers_B: np.ndarray) -> list[Tensor]:
        """As `token_rows`."""
        return [self._states[n // _ROWS_PER_FILE][n % _ROWS_PER_FILE] for n in numbers_B]

    def vectors(self, numbers_B: np.ndarray) -> Tensor:
        """As `target_vectors`."""
        return torch.stack([self._vectors[n // _ROWS_PER_FILE][n % _ROWS_PER_FILE] for n in numbers_B])
