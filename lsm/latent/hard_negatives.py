"""Hard negatives: for each training sentence the training sentences that resemble it most, found once, of which InfoNCE draws some.

Sentences that resemble the next one are what a prediction near the mean of a subject cannot tell from it (Xiong et al. 2021, ANCE, whose
negatives are neighbours of the query). Drawn ones join the candidates of the whole batch, and `blocked_candidates` keeps them from queries
that have read them.

Shape letters: R sentences of the corpus, K neighbours of each, M targets of a batch, X sentences drawn for it, P pairs, D vector width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsm.corpus.sampler import VectorDocuments
from lsm.files import atomic_write
from lsm.latent.settings import ObjectiveSettings
from lsm.progress import Progress, say
from lsm.training.distributed import ALONE, Ranks

Neighbours = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Corpus rows [B] and K → cosines float32 and corpus rows int64 of the nearest sentences, [B, K] each, best first; a row −1 is none."""
NOBODY = -1
_ROWS_AT_ONCE = 4096
_SEARCHED = 2
"""Times `hard_negatives_near` that are searched, so that enough are left when held-out ones and those already read are not taken."""


@dataclass(frozen=True)
class HardNegatives:
    """What is drawn for a batch."""

    z_XD: np.ndarray
    """Their vectors, float32."""
    document_X: np.ndarray
    """Document of each, int64."""
    row_X: np.ndarray
    """Corpus row of each, int64, rising; none of them is a target of the batch."""
    alike_P2: np.ndarray
    """Which are nearly a target: (number of the target, number of the drawn one), int64."""


class HardNegativeTable:
    """The neighbours of every training sentence that may be its negatives; `prepare` finds them or reads them again.

    None is the sentence itself, already read where it is predicted, of a document that is not trained on, or a sentence that stands in the
    corpus more than once (copies of it may have been read). So a drawn one is a copy of no target.

    Args:
        documents: numbers of the training documents.
        neighbours: in vectors of the corpus' encoder; sentences whose words stand several times should not be among them.
    """

    def __init__(self, source: VectorDocuments, documents: np.ndarray, neighbours: Neighbours, goals: ObjectiveSettings) -> None:
        self.source, self.neighbours, self.goals = source, neighbours, goals
        self._document_R = np.repeat(np.arange(len(source.starts) - 1), np.diff(source.starts))
        self._is_trained_R = np.isin(self._document_R, documents)
        if not goals.later_pieces:  # neither targets nor negatives
            self._is_trained_R &= source.column("part") == 0
        self._alike_R, self._near_RK = np.zeros(0, dtype=np.int32), np.zeros((0, 0), dtype=np.int32)

    def prepare(self, folder: Path, *, ranks: Ranks = ALONE, quiet: bool = False) -> None:
        """Read the table from `folder`, after the first process has searched for what is not there yet.

        A file holds the neighbours of some thousand rows, int32 [rows, 1 + K]: how many of them are nearly the sentence, then corpus rows,
        best first, −1 where there are no more. Who calls it sees to it that corpus, store and settings are those of the files.
        """
        ranks.on_first(lambda: self._search(folder, quiet=quiet))
        table = np.concatenate([np.load(path, allow_pickle=False) for path, _ in self._files(folder)])
        self._alike_R, self._near_RK = table[:, 0], table[:, 1:]
        alike_N, there_N = self._alike_R[self._is_trained_R], (self._near_RK[self._is_trained_R] != NOBODY).sum(1)
        few = (there_N - alike_N < self.goals.hard_negatives).mean()
        say(
            f"hard negatives: {(there_N - alike_N).mean():.1f} neighbours a sentence to draw {self.goals.hard_negatives} from "
            f"({few:.1%} have fewer); {alike_N.mean():.2f} are left out as nearly the same",
            quiet=quiet or not ranks.is_first,
        )

    def draw(self, row_M: np.ndarray, generator: np.random.Generator) -> HardNegatives:
        """For targets (corpus rows `row_M`) `hard_negatives` each of their neighbours at random, but not those that are nearly the target.

        What several of them draw, or is a target itself, stands among the candidates once.
        """
        assert len(self._near_RK), "prepare finds the neighbours"
        near_MK, alike_M = self._near_RK[row_M].astype(np.int64), self._alike_R[row_M]
        place_K = np.arange(near_MK.shape[1])
        is_alike_MK = place_K < alike_M[:, None]
        lot_MK = np.where(is_alike_MK | (near_MK == NOBODY), np.inf, generator.random(near_MK.shape))
        chosen_MK = np.argsort(lot_MK, axis=1, kind="stable")[:, : self.goals.hard_negatives]
        drawn = np.take_along_axis(near_MK, chosen_MK, 1)[np.take_along_axis(lot_MK, chosen_MK, 1) < np.inf]
        row_X = np.setdiff1d(drawn, row_M)
        target_P, place_P = np.nonzero(is_alike_MK & np.isin(near_MK, row_X))
        return HardNegatives(
            z_XD=self.source.vector_at(row_X).astype(np.float32),
            document_X=self._document_R[row_X],
            row_X=row_X,
            alike_P2=np.stack([target_P, np.searchsorted(row_X, near_MK[target_P, place_P])], axis=1),
        )

    def _search(self, folder: Path, *, quiet: bool) -> None:
        missing = [(path, start) for path, start in self._files(folder) if not path.exists()]
        if not missing:
            return
        folder.mkdir(parents=True, exist_ok=True)
        is_trained_R = self._is_trained_R
        may_R = is_trained_R & self._stands_once()
        unsearched = [np.arange(start, min(len(may_R), start + _ROWS_AT_ONCE)) for _, start in missing]
        with Progress("hard negatives", int(sum(is_trained_R[rows].sum() for rows in unsearched)), "sentences", quiet=quiet) as progress:
            for (path, _), rows in zip(missing, unsearched, strict=True):
                table = np.full((len(rows), 1 + self.goals.hard_negatives_near), NOBODY, dtype=np.int32)
                table[:, 0] = 0
                queries = rows[is_trained_R[rows]]
                if len(queries):
                    table[is_trained_R[rows]] = self._nearest(queries, may_R)
                with atomic_write(path) as handle:
                    np.save(handle, table, allow_pickle=False)
                progress.advance(len(queries))

    def _nearest(self, row_B: np.ndarray, may_R: np.ndarray) -> np.ndarray:
        goals, document_R = self.goals, self._document_R
        cosine_BK, found_BK = self.neighbours(row_B, _SEARCHED * goals.hard_negatives_near + 1)
        taken_BK = (found_BK != NOBODY) & may_R[found_BK] & (found_BK != row_B[:, None])
        in_document_BK = document_R[found_BK] == document_R[row_B][:, None]
        taken_BK &= ~in_document_BK | (found_BK > row_B[:, None]) if goals.in_document_negatives else ~in_document_BK
        # The taken ones to the front, as they stand.
        order_BK = np.argsort(~taken_BK, axis=1, kind="stable")[:, : goals.hard_negatives_near]
        near_BK = np.where(np.take_along_axis(taken_BK, order_BK, 1), np.take_along_axis(found_BK, order_BK, 1), NOBODY)
        alike_B = ((np.take_along_axis(cosine_BK, order_BK, 1) > goals.hard_negatives_most) & (near_BK != NOBODY)).sum(1)
        table = np.full((len(row_B), 1 + goals.hard_negatives_near), NOBODY, dtype=np.int32)
        table[:, 0], table[:, 1 : 1 + near_BK.shape[1]] = alike_B, near_BK
        return table

    def _stands_once(self) -> np.ndarray:
        """Whether no other row has the very vector of a row, bool [R]."""
        digests: list[int] = []
        for doc in range(len(self.source.doc_ids)):
            z_SD = self.source.vectors(doc)
            digests += [int.from_bytes(hashlib.blake2b(z_D.tobytes(), digest_size=8).digest(), "little") for z_D in z_SD]
        digest_R = np.array(digests, dtype=np.uint64)
        _, kind_R, times = np.unique(digest_R, return_inverse=True, return_counts=True)
        return times[kind_R] == 1

    def _files(self, folder: Path) -> list[tuple[Path, int]]:
        return [(folder / f"{start:09d}.npy", start) for start in range(0, int(self.source.starts[-1]), _ROWS_AT_ONCE)]
