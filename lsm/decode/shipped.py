"""Finding an adapter: by folder, by the name of a shipped one, or by the encoder whose vectors are to be worded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsm.corpus.format import encoder_line, require_same_space, same_space
from lsm.errors import UserError
from lsm.files import CONFIG, read_json

SHIPPED = Path(__file__).parent / "shipped"
SHIPPED_CODES = Path(__file__).parent / "shipped_codes"


def find_adapter(name: str | None, *, encoder: dict[str, Any]) -> Path:
    """Folder of the adapter called `name` (None: the first shipped one for this encoder).

    Raises:
        UserError: no such adapter, or one for another encoder; the message lists what there is.
    """
    names = _names()
    if name is None:
        shipped = shipped_adapter(encoder)
        if shipped is not None:
            return shipped
        raise UserError(
            f"no shipped adapter reads vectors of {encoder_line(encoder)} (shipped: {', '.join(names) or 'none'}); "
            "train one with lsm train-decoder and give it with --adapter RUN/final, or use --decoder guided or retrieval"
        )
    for folder in (Path(name), Path(name) / "final", SHIPPED / name):
        if (folder / CONFIG).is_file():
            require_same_space(_encoder_of(folder), encoder, what=f"adapter {name}")
            return folder
    raise UserError(f"--adapter {name}: neither a folder with an adapter nor a shipped one ({', '.join(names) or 'none shipped'})")


def shipped_adapter(encoder: dict[str, Any]) -> Path | None:
    """Folder of the first shipped adapter for this encoder, if there is one."""
    return next((SHIPPED / name for name in _names() if same_space(_encoder_of(SHIPPED / name), encoder)), None)


def find_learned_code(encoder: dict[str, Any]) -> Path:
    """Folder of the shipped learned code for vectors of `encoder`; raises `UserError` where there is none."""
    for folder in sorted(SHIPPED_CODES.glob("*")):
        if (folder / CONFIG).is_file() and same_space(read_json(folder / CONFIG)["home"]["adapter"]["encoder"], encoder):
            return folder
    raise UserError(
        f"no shipped learned code goes with vectors of {encoder_line(encoder)}; train one with "
        "lsm train-decoder --config configs/learned-code.yaml and give it with --learned-code RUN/final"
    )


def _names() -> list[str]:
    return sorted(path.name for path in SHIPPED.glob("*") if (path / CONFIG).exists())


def _encoder_of(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or "encoder" not in config.get("home", {}):
        raise UserError(f"{folder / CONFIG} is not an adapter's; name a folder that lsm train-decoder wrote (RUN/final)")
    return config["home"]["encoder"]
