"""A latent transformer on disk: weights, normaliser, config and card in a folder; shipped ones by name."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lsm.config import settings_from, to_dict
from lsm.errors import UserError
from lsm.files import read_json, write_json
from lsm.latent.card import model_card
from lsm.latent.normaliser import Normaliser
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.training.parallel import whole
from lsm.training.stored import pack, unpack

FORMAT = 2
SHIPPED = Path(__file__).parent / "shipped"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_NOT_IN_MODEL_FILE = ("normaliser.", "positions.")  # one has its own file, the other is computed from the config


def meant(folder: Path) -> Path:
    """`folder`, or the shipped one of that name where there is no such folder."""
    return SHIPPED / folder if not folder.exists() and (SHIPPED / folder / CONFIG).exists() else folder


def locate(folder: Path) -> Path:
    """The folder with the model itself: `folder`, the `final/` of a run, or a shipped one of that name.

    Raises:
        UserError: nothing there, or an unfinished run.
    """
    folder = meant(folder)
    if not (folder / CONFIG).exists() and (folder / "run.json").exists():
        if not (folder / "final").exists():
            raise UserError(f"run {folder} is not finished (no final/); run its pretrain command again to finish it")
        folder = folder / "final"
    if not (folder / CONFIG).exists():
        shipped = ", ".join(sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))) or "none"
        raise UserError(
            f"{folder} holds no latent transformer (no {CONFIG}; shipped: {shipped}); make one with: lsm pretrain --corpus DIR --out RUN"
        )
    return folder


def save(model: LatentTransformer, folder: Path, card: str | None, dtype: torch.dtype) -> None:
    """See `LatentTransformer.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name: value for name, value in model.state_dict().items() if not name.startswith(_NOT_IN_MODEL_FILE)}
    state = {name: whole(value).cpu().contiguous() for name, value in named.items()}
    packed = pack(state, dtype, in_int8=lambda name, value: value.ndim == 2)
    save_file(packed, folder / WEIGHTS, metadata={"format": "pt"})
    model.normaliser.save(folder)
    write_json(folder / CONFIG, {"kind": "latent-transformer", "format": FORMAT} | to_dict(model.config))
    (folder / "README.md").write_text(card or model_card(model), encoding="utf-8")


def load(folder: Path) -> LatentTransformer:
    """See `LatentTransformer.from_pretrained`."""
    folder = locate(folder)
    raw = read_json(folder / CONFIG)
    if not isinstance(raw, dict) or raw.pop("kind", None) != "latent-transformer" or raw.pop("format", None) != FORMAT:
        raise UserError(f"{folder / CONFIG} does not describe a latent transformer of format {FORMAT}; name a run of lsm pretrain")
    config = settings_from(LatentConfig, raw, origin=str(folder / CONFIG))
    try:
        model = LatentTransformer(config, Normaliser.load(folder))
        missing, unexpected = model.load_state_dict(unpack(load_file(folder / WEIGHTS)), strict=False)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"weights in {folder} are damaged or do not fit its {CONFIG} ({reason}); copy or train it again") from error
    absent = [name for name in missing if not name.startswith(_NOT_IN_MODEL_FILE)]
    if absent or unexpected:
        raise UserError(f"weights in {folder} do not fit its {CONFIG}: missing {absent[:3]}, unexpected {unexpected[:3]}")
    model.attention = "sdpa"  # how attention is computed is this machine's matter, not the model's
    return model.eval()
