"""What a run is made of (`plan.json`), written before its first shard, so that a resume with anything else is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from lsm.corpus import format as layout
from lsm.encode.settings import EncodeSettings
from lsm.errors import UserError
from lsm.files import fingerprint, read_json, write_json
from lsm.text.remote import is_url, url_name

Resume = Literal["auto", "never", "must"]

WINDOW_ROWS = 2048
"""Most sentences encoded as one task: length-sorted together, spread over the workers (4096 is no faster, 512 is 10 % slower)."""


@dataclass
class Stage:
    """One call of encode-corpus: the first, or an `--append`."""

    inputs: list[str]
    """Names without folders, for a person to read; content is checked by hash."""
    limit_documents: int | None
    first_shard: int


@dataclass
class RunPlan:
    """Everything that decides the bytes of a corpus, and the stages it was made in."""

    encoder: dict[str, Any]
    segmentation: dict[str, Any]
    shard_rows: int
    window_rows: int = WINDOW_ROWS
    residual: dict[str, Any] | None = None
    """What fixes the residual code; None = semantic vectors only."""
    keep_text: bool = True
    """False: sentences are kept as residual codes alone."""
    stages: list[Stage] = field(default_factory=list)

    @classmethod
    def of(
        cls, encoder: dict[str, Any], settings: EncodeSettings, *, residual: dict[str, Any] | None = None, keep_text: bool = True
    ) -> RunPlan:
        """The plan of a run with this encoder and these settings, without stages."""
        package = {"sentencex": "sentencex", "sat": "wtpsplit-lite"}[settings.segmenter]
        try:
            release = version(package)
        except PackageNotFoundError:
            release = "absent"
        segmentation = {
            "segmenter": f"{settings.segmenter} {release}", "language": settings.language, "cap_characters": settings.cap_characters
        }  # fmt: skip
        return cls(encoder, segmentation, settings.shard_rows, residual=residual, keep_text=keep_text)

    @classmethod
    def load(cls, corpus: Path) -> RunPlan | None:
        """The plan of a corpus on disk; None when there is none."""
        path = corpus / layout.PLAN
        if not path.exists():
            return None
        try:
            raw = read_json(path)
            stages = [Stage(**stage) for stage in raw.pop("stages")]
            return cls(**raw, stages=stages)
        except (UserError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged, or not of this lsm; restore it, or choose another --out (what is there can still be read: lsm inspect)"
            ) from error

    def save(self, corpus: Path) -> None:
        """Write `plan.json` atomically."""
        write_json(corpus / layout.PLAN, asdict(self))

    def settings_fingerprint(self) -> str:
        """Sixteen hex digits over all but the stages."""
        return fingerprint(self._settings())

    def require_same(self, wanted: RunPlan, corpus: Path) -> None:
        """Raise `UserError`, showing both fingerprints and every difference, unless `wanted` would make the same rows."""
        mine, theirs = self._settings(), wanted._settings()
        if mine == theirs:
            return
        keys = [*mine, *(key for key in theirs if key not in mine)]
        differences = [f"{key}: {mine.get(key)!r} there, {theirs.get(key)!r} now" for key in keys if mine.get(key) != theirs.get(key)]
        raise UserError(
            f"{corpus} was begun with other settings [{self.settings_fingerprint()}] than now [{wanted.settings_fingerprint()}]: "
            f"{'; '.join(differences)}; give the same options again or choose another --out"
        )

    def _settings(self) -> dict[str, Any]:
        # The encoder's name is only a label: one model has several (asset name, folder).
        encoder = {f"encoder {key}": value for key, value in self.encoder.items() if key != "name"}
        rest = {name: getattr(self, name) for name in ("shard_rows", "window_rows", "keep_text")}
        rest |= {f"residual {key}": value for key, value in (self.residual or {"kind": "none"}).items()}
        return encoder | dict(self.segmentation) | rest


def windows(n_rows: int, window_rows: int) -> list[slice]:
    """A shard's rows in equal windows, so that no worker is left with a tail."""
    n_windows = -(-n_rows // window_rows)
    edges = [n_rows * i // n_windows for i in range(n_windows + 1)] if n_windows else []
    return [slice(first, stop) for first, stop in itertools.pairwise(edges)]


def input_names(inputs: Sequence[str]) -> list[str]:
    """Inputs as recorded: file and folder names without where they lie, recipe and hub names as they are."""
    return [url_name(item) if is_url(item) else Path(item).name if Path(item).exists() or "*" in item else item for item in inputs]
