"""How well a lexical forecast tells the words of the next sentence, beside words that were read and words that are frequent.

Letters: Q places, S sentences of a document, K dims of a bag, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lsm.bench import intervals
from lsm.bench.evaluation import MODEL
from lsm.bench.judged import Documents
from lsm.errors import UserError
from lsm.latent.transformer import LatentTransformer
from lsm.lm.frozen import FrozenLM

RECALL_AT = (20, 100)
DECAY = 0.7
"""Of the words read, sentence by sentence back."""
_READ_SHARE = 0.3
"""How probable a word of the last sentence is taken to stand in the next one too."""


def require_words(model: LatentTransformer, documents: Documents, lm: FrozenLM) -> None:
    """Raise `UserError` unless the forecasts of the model can be judged on the documents' text with this LM's words; attaches it."""
    assert model.lexical is not None
    if not documents.corpus.keeps_text:
        raise UserError(f"corpus {documents.corpus.path} keeps no text to judge the lexical forecast on; encode it without --drop-text")
    model.lexical.attach(lm)


@torch.no_grad()
def judge(
    model: LatentTransformer,
    documents: Documents,
    lm: FrozenLM,
    *,
    minimum_context: int = 3,
    places: int = 2000,
    resamples: int = 1000,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> list[dict[str, Any]]:
    """One row a way of telling words, with 95 % intervals from resampling documents.

    `recall_at_k`: of the weight (inverse document frequency) of the next sentence's tokens, the share that the k most expected tokens
    hold. `explained`: how much nearer the forecast bags are to the true ones than the mean bag is, as a share of what that misses.
    At most so many `places` are judged, drawn by the seed. `lm` must be attached (`require_words`).
    """
    lexical, found = model.lexical, {}
    assert lexical is not None
    document_Q: list[int] = []
    explained_G2 = np.zeros((len(documents.numbers), 2))
    values: dict[str, dict[str, list[float]]] = {}
    vectors, sections = documents.vectors(), documents.sections()
    for g, asked in _places(documents.parts(), minimum_context, places, seed):
        z_BSD = torch.from_numpy(np.asarray(vectors[g], dtype=np.float32))[None]
        bag_SK = model.forecast(z_BSD, section_BS=torch.from_numpy(sections[g])[None])[0]
        rows = lm.tokens.encode_exact(documents.corpus.texts(int(documents.numbers[g])))
        true_SK = lexical.bags(rows)
        frequent_V, read_V = lexical.share_V * lexical.weight_V, torch.zeros_like(lexical.weight_V)
        for s, ids in enumerate(rows):
            if s in asked:
                score_V = lexical.scores(bag_SK[s - 1 : s])[0]
                scores = {
                    MODEL: score_V,
                    f"{MODEL} + words read": score_V + _READ_SHARE * read_V,
                    f"words read, decay {DECAY}": read_V,
                    "words read + frequent words": frequent_V + _READ_SHARE * read_V,
                    "frequent words": frequent_V,
                }
                for name, told_V in scores.items():
                    for k, recall in _recalls(told_V, ids, lexical.weight_V):
                        values.setdefault(name, {}).setdefault(f"recall_at_{k}", []).append(recall)
                square = float(true_SK[s].square().sum())
                explained_G2[g] += square - float((bag_SK[s - 1] - true_SK[s]).square().sum()), square
                document_Q.append(g)
            read_V *= DECAY
            distinct = torch.tensor(sorted(set(ids)), dtype=torch.int64, device=read_V.device)
            read_V[distinct] += (1 - DECAY) * lexical.weight_V[distinct]
        advance(1)
    drawn_RG = intervals.draw(len(documents.numbers), resamples, seed)
    for name, columns in values.items():
        found[name] = {key: intervals.mean(np.array(column), np.array(document_Q), drawn_RG) for key, column in columns.items()}
    found[MODEL]["explained"] = intervals.statistic(explained_G2, drawn_RG, lambda sums: sums[0] / sums[1] if sums[1] else np.nan)
    return [{"predictor": name, "n": len(document_Q), **intervals.as_row(estimates)} for name, estimates in found.items()]


def _places(parts: Sequence[np.ndarray], minimum_context: int, places: int, seed: int) -> Iterator[tuple[int, set[int]]]:
    """Of each document with any: the sentences asked for, `places` in all, drawn where there are more."""
    asked = [(g, int(s)) for g, part_S in enumerate(parts) for s in np.flatnonzero(part_S == 0) if s >= minimum_context]
    drawn = np.random.default_rng(seed).permutation(len(asked))[:places]
    of_document: dict[int, set[int]] = {}
    for g, s in (asked[k] for k in sorted(drawn)):
        of_document.setdefault(g, set()).add(s)
    yield from of_document.items()


def _recalls(score_V: torch.Tensor, ids: Sequence[int], weight_V: torch.Tensor) -> Iterator[tuple[int, float]]:
    best_K, wanted = score_V.topk(max(RECALL_AT)).indices.tolist(), sorted(set(ids))
    weights = dict(zip(wanted, weight_V[wanted].tolist(), strict=True))
    total = sum(weights.values())
    for k in RECALL_AT:
        yield k, sum(weights[token] for token in weights.keys() & set(best_K[:k])) / total if total else float("nan")
