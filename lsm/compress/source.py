"""The frozen parts of a compressor by name: its LM, and the encoder whose token states it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lsm.compress.encoder import Pieces
from lsm.compress.settings import EncoderSettings
from lsm.encode.encoder import load_encoder
from lsm.errors import UserError


@dataclass(frozen=True)
class Source:
    """An encoder's token states; nothing where the LM or bytes are read."""

    pieces: Pieces | None = None
    width: int = 0
    fingerprint: Any = None


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
