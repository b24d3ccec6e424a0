"""What a training read or held out, as fingerprints beside its weights, so that an evaluation can leave it out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lsm.errors import UserError
from lsm.files import fingerprint, read_json, write_json

_NAME = "seen.json"


def save_seen(folder: Path, **contents: Iterable[str]) -> None:
    """Write the fingerprints of texts, or of names of documents, under a name for each kind."""
    write_json(folder / _NAME, {kind: sorted({fingerprint(one) for one in own}) for kind, own in contents.items()})


def load_seen(run: Path) -> dict[str, frozenset[str]]:
    """The fingerprints in a run, or in its `final`.

    Raises:
        UserError: the run does not say what it has read.
    """
    path = next((path for path in (run / _NAME, run / "final" / _NAME) if path.is_file()), None)
    if path is None:
        raise UserError(f"{run} has no {_NAME}, which says what was trained on (an older lsm wrote it); train it again")
    return {kind: frozenset(own) for kind, own in read_json(path).items()}
