"""Story Cloze (Mostafazadeh et al. 2016): which of two endings a story has, chosen by a predicted sentence vector or by an LM.

Letters: N stories, S sentences of a story, D vector width, B rows.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm.bench import intervals
from lsm.bench.controls import PredictRows, untuned_controls
from lsm.bench.evaluation import MODEL
from lsm.decode.vectors import unit
from lsm.errors import UserError

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

CHANCE = "chance"
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Story:
    """What is read, the two endings to choose from, and which of them is right, 0 or 1."""

    sentences: list[str]
    endings: list[str]
    right: int


def read_stories(path: Path, *, limit: int | None = None) -> list[Story]:
    """Stories of a .jsonl[.gz] file: one object a line with `sentences` (one or more), `endings` (two) and `right` (1 or 2).

    Raises:
        UserError: no such file, or a line that is no story; the line is named.
    """
    stories: list[Story] = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for line in itertools.islice(lines, limit):
                stories.append(_story(line, f"{path}, line {len(stories) + 1}"))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); name a .jsonl or .jsonl.gz file of stories") from error
    if not stories:
        raise UserError(f"{path} holds no story")
    return stories


def _story(line: str, where: str) -> Story:
    try:
        row = json.loads(line)
        sentences, endings, right = row["sentences"], row["endings"], row["right"]
        lists = isinstance(sentences, list) and isinstance(endings, list) and len(sentences) > 0 and len(endings) == 2
        if lists and type(right) is int and right in (1, 2) and all(map(_is_text, (*sentences, *endings))):
            return Story(sentences, endings, right - 1)
        reason = "a list of sentences, a list of two endings and right = 1 or 2 are needed, no text blank"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"[:100]
    raise UserError(f"{where}: no story ({reason}); each line is an object with sentences, endings and right")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= character <= "\udfff" for character in value)


def leads_by_vectors(
    stories: Sequence[Story], encode: Callable[[Sequence[str]], np.ndarray], predict_rows: PredictRows
) -> dict[str, np.ndarray]:
    """By how much the right ending is nearer (in cosine) to what each predictor expects after the story than the wrong one, float64 [N].

    Args:
        encode: texts → vectors [B, D].
        predict_rows: the model's; beside it stand the controls that need no training documents.
    """
    texts = [text for story in stories for text in (*story.sentences, *story.endings)]
    ends = np.cumsum([len(story.sentences) + 2 for story in stories])
    documents = np.split(np.asarray(encode(texts), dtype=np.float32), ends[:-1])
    expected = {MODEL: _after(documents, predict_rows)}
    for name, control in untuned_controls().items():
        expected[name] = np.stack([np.asarray(control(z_SD[:-2]))[-1] for z_SD in documents])
    endings_N2D = np.stack([unit(z_SD[-2:]) for z_SD in documents])
    return {name: _leads(np.einsum("ned,nd->ne", endings_N2D, unit(z_ND)), stories) for name, z_ND in expected.items()}


def leads_by_likelihood(stories: Sequence[Story], lm: FrozenLM, advance: Callable[[int], None] = lambda n: None) -> dict[str, np.ndarray]:
    """By how much the right ending is more probable after the story's text under the LM, in nats, and in nats a token, float64 [N]."""
    import torch

    total_N2, mean_N2 = np.zeros((len(stories), 2)), np.zeros((len(stories), 2))
    for n, story in enumerate(stories):
        (read,) = lm.tokens.encode([" ".join(story.sentences)])
        ids_BT, mask_BT = lm.tokenize([f" {ending}" for ending in story.endings])
        with torch.inference_mode():
            prefix_BPH = lm.embed(torch.tensor([[*lm.tokens.start_ids, *read]], device=lm.device)).expand(2, -1, -1)
            mean_N2[n] = -lm.prefix_loss(prefix_BPH, ids_BT, mask_BT).double().cpu().numpy()
        total_N2[n] = mean_N2[n] * mask_BT.sum(1).cpu().numpy()
        advance(1)
    name = f"LM {lm.name}"
    return {f"{name}, likelihood": _leads(total_N2, stories), f"{name}, likelihood a token": _leads(mean_N2, stories)}


def score(leads: dict[str, np.ndarray], *, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """One row a chooser with the share of right choices (a tie counts a half), and by how much the model chooses better than it, both with
    95 % intervals from resampling stories."""
    right = {name: np.where(lead_N == 0, 0.5, (lead_N > 0).astype(np.float64)) for name, lead_N in leads.items()}
    n = len(right[MODEL])
    right[CHANCE] = np.full(n, 0.5)
    story_N, drawn_RG = np.arange(n), intervals.draw(n, resamples, seed)
    rows = []
    for name, right_N in right.items():
        estimates = {
            "accuracy": intervals.mean(right_N, story_N, drawn_RG),
            "lead_accuracy": intervals.mean(right[MODEL] - right_N, story_N, drawn_RG),
        }
        rows.append({"predictor": name, "n": n, **intervals.as_row(estimates)})
    return rows


def _after(documents: Sequence[np.ndarray], predict_rows: PredictRows) -> np.ndarray:
    """What is predicted after each story, [N, D]; its endings are not read."""
    predicted_ND = np.zeros((len(documents), documents[0].shape[1]), dtype=np.float32)
    for start in range(0, len(documents), _ROWS_AT_ONCE):
        some = [z_SD[:-2] for z_SD in documents[start : start + _ROWS_AT_ONCE]]
        rows_BSD = np.zeros((len(some), max(map(len, some)), some[0].shape[1]), dtype=np.float32)
        for row_SD, z_SD in zip(rows_BSD, some, strict=True):
            row_SD[: len(z_SD)] = z_SD
        last_B = np.array([len(z_SD) - 1 for z_SD in some])
        predicted_ND[start : start + len(some)] = predict_rows(rows_BSD)[np.arange(len(some)), last_B]
    return predicted_ND


def _leads(score_N2: np.ndarray, stories: Sequence[Story]) -> np.ndarray:
    right_N = np.array([story.right for story in stories])
    at_N = np.arange(len(stories))
    return (score_N2[at_N, right_N] - score_N2[at_N, 1 - right_N]).astype(np.float64)
