"""The space that a latent transformer plans in: which parts of a corpus' vectors it reads and predicts, side by side.

The semantic part has unit length. Learned codes have unit variance in each of their K dims; divided by √K they are of about unit length,
so that the cosine of the whole (InfoNCE, roll-outs) is about the mean of the parts' cosines, whatever K. The mean squared error is taken
in the normaliser's space, where each dim weighs the same: 128 of 384 + 128 dims have a quarter of it.

Shape letters: S sentences, B rows asked for, D width of all parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsm.config import STRICT
from lsm.corpus.reader import Corpus
from lsm.errors import UserError
from lsm.latent.settings import Space

PartName = Literal["semantic", "residual"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the vectors that a model lives in."""

    __pydantic_config__ = STRICT

    name: PartName
    dim: int
    scale: float = 1.0
    """The corpus' vectors are multiplied by it."""


def parts_of(corpus: Corpus, space: Space, residual_dims: int | None = None) -> list[Part]:
    """The parts of `space` in this corpus; `residual_dims` takes the first so many dims of its learned codes, None all.

    Raises:
        UserError: a corpus without learned codes, with superposition codes, or with fewer dims.
    """
    parts = [Part(name="semantic", dim=corpus.dim)] if space != "residual" else []
    if space != "semantic":
        there_are = residual_width(corpus)
        dims = there_are if residual_dims is None else residual_dims
        if dims > there_are:
            raise UserError(f"data.residual_dims {dims}: corpus {corpus.path} has learned codes of {there_are} dims; ask for fewer")
        parts.append(Part(name="residual", dim=dims, scale=dims**-0.5))
    return parts


def residual_width(corpus: Corpus) -> int:
    """Dims of the learned codes of a corpus; `UserError` where there are none."""
    corpus.vector_at([], "residual")  # refuses, saying why, what is no space to plan in
    return next(int(part["dim"]) for part in corpus.parts() if part["name"] == "residual")


def require_space(corpus: Corpus, parts: Sequence[Part], residual: dict[str, Any] | None) -> None:
    """Raise `UserError` unless the corpus holds `parts`, its codes made by the learned code with fingerprint `residual`."""
    wanted = next((part.dim for part in parts if part.name == "residual"), None)
    if wanted is None:
        return
    if (there_are := residual_width(corpus)) < wanted:
        raise UserError(
            f"corpus {corpus.path} has learned codes of {there_are} dims, the model reads {wanted}; "
            f"encode it again with --residual learned --residual-dims {wanted}"
        )
    found = (corpus.residual or {}).get("sha256")
    if residual and found != residual.get("sha256"):
        raise UserError(
            f"corpus {corpus.path} has codes of another learned code (sha256 {str(found)[:12]}) than the model reads "
            f"({str(residual.get('sha256'))[:12]}); encode it again with --learned-code and that one"
        )


class SpaceDocuments:
    """A corpus whose vectors are its `parts` side by side, as the sampler takes documents."""

    def __init__(self, corpus: Corpus, parts: Sequence[Part]) -> None:
        self.corpus, self.parts = corpus, parts
        self.doc_ids, self.starts = corpus.doc_ids, corpus.starts

    def vectors(self, doc: int) -> np.ndarray:
        """Vectors of a document, float16 [S, D]."""
        return beside([self.corpus.vectors(doc, part.name) for part in self.parts], self.parts)

    def vector_at(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Vectors of any rows, float16 [B, D], in the order asked for."""
        return beside([self.corpus.vector_at(rows, part.name) for part in self.parts], self.parts)

    def column(self, name: str) -> np.ndarray:
        """A numeric column over all rows."""
        return self.corpus.column(name)

    def text_at(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The text of any rows."""
        return self.corpus.text_at(rows)


def beside(vectors: Sequence[np.ndarray], parts: Sequence[Part]) -> np.ndarray:
    """Each part's own vectors [S, dims or more] as one array of all parts, float16 [S, D]."""
    return np.concatenate([(z[:, : p.dim] * np.float32(p.scale)).astype(np.float16) for z, p in zip(vectors, parts, strict=True)], axis=1)


def slices(parts: Sequence[Part]) -> dict[str, slice]:
    """Where each part stands."""
    places, start = {}, 0
    for part in parts:
        places[part.name] = slice(start, start := start + part.dim)
    return places


def unit_parts(z: Tensor, parts: Sequence[Part]) -> Tensor:
    """Vectors […, D] with each part of unit length; without parts the whole."""
    places = slices(parts).values() or [slice(None)]
    return torch.cat([F.normalize(z[..., place], dim=-1) for place in places], dim=-1)


def judged_dims(parts: Sequence[Part]) -> slice:
    """The dims that rows are ranked by: the semantic part where there is one, so that rows of different spaces compare; or all."""
    return slices(parts).get("semantic", slice(None))
