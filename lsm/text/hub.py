"""Data sets of the Hugging Face hub → documents, streamed through `datasets` (an extra)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lsm.assets import offline
from lsm.errors import UserError, missing_extra
from lsm.text.documents import Document
from lsm.text.rows import RowFields, row_document


def hub_documents(
    dataset: str, *, split: str = "train", config: str | None = None, fields: RowFields | None = None
) -> Iterator[Document | None]:
    """One document for each row of a hub data set, None for a row with an empty text.

    Raises:
        UserError: `datasets` is not installed, `LSM_OFFLINE` is set, the data set or split cannot be opened, a row has no text.
    """
    origin = f"hf:{dataset}:{split}"
    for number, (where, row) in enumerate(hub_rows(dataset, split=split, config=config)):
        yield row_document(row, fields or RowFields(), where=where, fallback_id=f"{dataset}/{split}#{number}", source=origin)


def hub_rows(dataset: str, *, split: str = "train", config: str | None = None) -> Iterator[tuple[str, Any]]:
    """Place and value of each row of a hub data set, streamed; errors as of `hub_documents`.

    `dataset` may name the configuration itself: `hotpotqa/hotpot_qa@distractor`.
    """
    origin = f"hf:{dataset}:{split}"
    dataset, _, named = dataset.partition("@")
    if offline():
        raise UserError(f"{origin} needs the network but LSM_OFFLINE=1 is set; unset it, or read a local file")
    try:
        from datasets import load_dataset  # ty: ignore[import-not-found]
    except ImportError as error:
        raise missing_extra("datasets", "hub-datasets") from error
    try:
        rows = load_dataset(dataset, config or named or None, split=split, streaming=True)
        for number, row in enumerate(rows):
            yield f"{origin}, row {number}", row
    except (OSError, ValueError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:300]
        raise UserError(f"cannot read {origin}: {problem}; check name, @CONFIG, split and network") from error
