"""The frozen parts of a compressor by name: its LM, and the encoder whose token states it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lsm.compress.encoder import Pieces
from lsm.compress.settings import CompressSettings, EncoderSettings
from lsm.encode.encoder import load_encoder
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.provenance import choose_device


@dataclass(frozen=True)
class Source:
    """An encoder's token states; nothing where the LM or bytes are read."""

    pieces: Pieces | None = None
    width: int = 0
    fingerprint: Any = None


def load_lm(settings: CompressSettings, *, device: str) -> FrozenLM:
    """The frozen LM, in the precision in which it is trained for: an evaluation reads it as training did."""
    dtype = torch.float32 if settings.precision == "float32" else None
    return FrozenLM.load(settings.lm, device=choose_device(device)[0], dtype=dtype)


def load_source(settings: EncoderSettings, *, device: str) -> Source:
    """What `settings.source` asks for.

    Raises:
        UserError: an encoder that gives no token states.
    """
    if settings.source != "encoder":
        return Source()
    encoder = load_encoder(settings.name, device=device, precision="float32")
    pieces = getattr(encoder, "pieces", None)
    if pieces is None:
        raise UserError(f"encoder.name {settings.name} gives no token states; name a transformer such as minilm")
    return Source(pieces, encoder.dim, encoder.fingerprint())
