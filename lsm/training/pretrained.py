"""A trained network as a folder: config.json that names its kind, weights as safetensors, a card. `final` of a run is such a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsm.errors import UserError
from lsm.files import CONFIG, read_json, sha256_file, write_json
from lsm.training.stored import pack, unpack

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Kind:
    """What such folders hold, and how they are called in messages."""

    format: str
    """What config.json and the weights call it."""
    name: str
    made_by: str
    """Command that writes one."""

    def save(
        self, folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any], *, card: str, dtype: torch.dtype = torch.float16,
        in_int8: Callable[[str, Tensor], bool] = lambda name, value: False,
    ) -> None:  # fmt: skip
        """Write config.json, model.safetensors (as of `stored.pack`) and README.md into the existing `folder`."""
        packed = pack({name: value.detach().cpu() for name, value in state.items()}, dtype, in_int8=in_int8)
        save_file(packed, folder / WEIGHTS, metadata={"format": self.format})
        write_json(folder / CONFIG, {"format": self.format, **config})
        (folder / "README.md").write_text(card, encoding="utf-8")

    def find(self, folder: Path) -> tuple[Path, dict[str, Any]]:
        """The folder itself, or its `final`, and what config.json says there.

        Raises:
            UserError: nothing of this kind there.
        """
        inside = folder if (folder / CONFIG).is_file() else folder / "final"
        if not (inside / CONFIG).is_file():
            lacks = f"holds no finished {self.name}" if folder.is_dir() else "is no folder"
            raise UserError(f"{folder} {lacks}; name one that {self.made_by} has finished")
        config = read_json(inside / CONFIG)
        found = config.get("format") if isinstance(config, dict) else None
        if found != self.format:
            raise UserError(f"{inside / CONFIG} describes {found or 'something else'}, not {self.format}; name what {self.made_by} wrote")
        return inside, config

    @contextmanager
    def reading(self, folder: Path) -> Iterator[dict[str, Tensor]]:
        """The weights of a folder that was found, float32, to be put into a network while open.

        Raises:
            UserError: they cannot be read, or what is done with them or with the config fails.
        """
        with self.refusing(folder):
            yield unpack(load_file(folder / WEIGHTS))

    @contextmanager
    def refusing(self, folder: Path) -> Iterator[None]:
        """While open, what fails is the folder's fault.

        Raises:
            UserError: something did; errors of that type pass as they are.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            files = f"{CONFIG} or {WEIGHTS}"
            raise UserError(f"{self.name} {folder} is damaged, or of an older lsm ({files}: {why}); fetch or train it again") from error


def weights_sha256(folder: Path) -> str:
    """What tells one network's weights from another's; of its folder, or of the run whose `final` that is."""
    return sha256_file((folder if (folder / WEIGHTS).is_file() else folder / "final") / WEIGHTS)
