"""A compressor's frozen parts by name, and a trained one on disk: weights, settings, and the LM and encoder it is bound to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lsm.compress.prompts import Prompts
from lsm.compress.settings import CompressSettings
from lsm.config import settings_from, to_dict
from lsm.connector.compressor import Compressor, Pieces
from lsm.corpus.format import require_same_space
from lsm.encode.encoder import load_encoder
from lsm.errors import UserError
from lsm.files import CONFIG, fingerprint
from lsm.lm.frozen import FrozenLM, same_lm
from lsm.provenance import choose_device
from lsm.text.questions import Question
from lsm.training.pretrained import Kind
from lsm.training.seen import load_seen

_KIND = Kind("lsm compressor", "compressor", "lsm compress train")
_CARD = """---
library_name: lsm
tags: [prompt-compression, soft-tokens]
---
# Compressor for {lm}: {ratios} tokens a soft token

Reads a text ({source}, {pooling} pooling) and makes one vector of each stretch of it for the frozen causal LM `{lm}`, which then answers
questions about the text. Trained by `lsm compress train` on {n:,} questions.

    lsm compress eval RUN QUESTIONS.jsonl

Held out, nats per answer token: {scores}. Only `lsm compress eval` says what that is worth, beside its controls.
"""


@dataclass(frozen=True)
class Source:
    """An encoder's token states; nothing where the LM or bytes are read."""

    pieces: Pieces | None = None
    width: int = 0
    fingerprint: Any = None


NOTHING = Source()


def load_parts(settings: CompressSettings, *, device: str) -> tuple[FrozenLM, Source]:
    """The frozen LM, in the precision in which it is trained for (an evaluation reads it as training did), and what `encoder.source` names.

    Raises:
        UserError: an encoder that gives no token states.
    """
    dtype = torch.float32 if settings.precision == "float32" else None
    lm = FrozenLM.load(settings.lm, device=choose_device(device)[0], dtype=dtype)
    if settings.encoder.source != "encoder":
        return lm, NOTHING
    encoder = load_encoder(settings.encoder.name, device=device, precision="float32")
    pieces = getattr(encoder, "pieces", None)
    if pieces is None:
        raise UserError(f"encoder.name {settings.encoder.name} gives no token states; name a transformer such as minilm")
    return lm, Source(pieces, encoder.dim, encoder.fingerprint())


def save_compressor(
    folder: Path, compressor: Compressor, settings: CompressSettings, lm: FrozenLM, encoder: Any, *, n: int, scores: dict[str, float]
) -> None:
    """Write weights, config and card into the existing `folder`."""
    shape = settings.encoder
    source = {"lm": "the LM's own states", "encoder": f"token states of {shape.name}", "bytes": "UTF-8 bytes"}[shape.source]
    card = _CARD.format(
        lm=lm.name, ratios=", ".join(map(str, settings.ratios)), source=source, pooling=shape.pooling, n=n,
        scores=", ".join(f"{name} {value:.3f}" for name, value in scores.items()),
    )  # fmt: skip
    config = {"settings": to_dict(settings), "lm": lm.fingerprint(), "encoder": encoder}
    _KIND.save(folder, compressor.state_dict(), config, card=card, dtype=torch.float32)


def load_compressor(run: Path, *, device: str) -> tuple[Compressor, CompressSettings, FrozenLM]:
    """The compressor of a run, or of its `final`, beside its LM, which carries the encoder's LoRA layers then.

    Raises:
        UserError: no compressor there, or a damaged one, or LM or encoder have other weights than it was trained with.
    """
    folder, config = _KIND.find(run)
    with _KIND.refusing(folder):
        settings = settings_from(CompressSettings, config["settings"], origin=str(folder / CONFIG))
        trained_lm, trained_encoder = config["lm"], config["encoder"]
    lm, source = load_parts(settings, device=device)
    if source.fingerprint is not None:
        require_same_space(trained_encoder, source.fingerprint, what=f"compressor {folder}")
    if not same_lm(trained_lm, lm):
        raise UserError(f"compressor {folder} was trained with LM {trained_lm.get('name')}, not {lm.name}; load that one")
    with torch.random.fork_rng(devices=[]):
        before = Prompts(lm.tokens, settings.data.shots).preamble
        compressor = Compressor(settings.encoder, lm, source.pieces, source.width, before).to(lm.device)
    with _KIND.reading(folder) as state:
        compressor.load_state_dict(state)
    return compressor.eval(), settings, lm


def unseen(questions: Sequence[Question], run: Path) -> list[Question]:
    """The questions on texts and articles that the training of a run has not read.

    Raises:
        UserError: no compressor there, or it does not say what it has read.
    """
    seen = load_seen(_KIND.find(run)[0])
    return [one for one in questions if fingerprint(one.article) not in seen["articles"] and fingerprint(one.text) not in seen["texts"]]
