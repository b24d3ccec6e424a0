"""How well a lexical forecast tells the words of the next sentence, beside words that were read and words that are frequent.

Letters: Q places, S sentences of a document, K dims of a bag, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lsm.bench import intervals
from lsm.bench.evaluation import MODEL, Documents
from lsm.codes.alphabet import Alphabet
from lsm.errors import UserError
from lsm.latent.transformer import LatentTransformer

RECALL_AT = (20, 100)
DECAY = 0.7
"""Of the words read, sentence by sentence back."""


def require_words(model: LatentTransformer, documents: Documents, alphabet: Alphabet) -> None:
    """Raise `UserError` unless the forecasts of the model can be judged on the documents' text with these tokens."""
    assert model.lexical is not None
    space = model.lexical.space
    if not documents.corpus.keeps_text:
        raise UserError(f"corpus {documents.corpus.path} keeps no text to judge the lexical forecast on; encode it without --drop-text")
    if space.vocabulary_sha256 != alphabet.sha256:
        raise UserError(
            f"the model forecasts over {space.vocabulary:,} tokens (sha256 {space.vocabulary_sha256[:12]}), the tokenizer at hand has "
            f"{alphabet.size:,} ({alphabet.sha256[:12]}); give the LM that it was pretrained for with --lexical-lm"
        )


@torch.no_grad()
def judge(
    model: LatentTransformer,
    documents: Documents,
    alphabet: Alphabet,
    *,
    minimum_context: int = 3,
    resamples: int = 1000,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> list[dict[str, Any]]:
    """One row a way of telling words, with 95 % intervals from resampling documents.

    `recall_at_k`: of the weight (inverse document frequency) of the next sentence's tokens, the share that the k most expected tokens
    hold. `explained`: how much nearer the forecast bag is to the true one than a bag of nothing, as a share of its square.
    """
    lexical, found = model.lexical, {}
    assert lexical is not None
    document_Q: list[int] = []
    values: dict[str, dict[str, list[float]]] = {}
    parts, sections, vectors = documents.parts(), documents.sections(), documents.vectors()
    for g, number in enumerate(documents.numbers):
        asked = np.flatnonzero(parts[g] == 0)
        asked = asked[asked >= minimum_context]
        if not len(asked):
            continue
        z_BSD = torch.from_numpy(np.asarray(vectors[g], dtype=np.float32))[None]
        bag_SK = model.forecast(z_BSD, section_BS=torch.from_numpy(sections[g])[None])[0]
        rows = alphabet.tokens.encode_exact(documents.corpus.texts(int(number)))
        true_SK = lexical.bags(rows)
        read_SK = _read(true_SK)
        scores = {
            MODEL: lexical.scores(bag_SK[asked - 1]),
            f"words read, decay {DECAY}": lexical.scores(read_SK[asked - 1]),
            "words of the last sentence": lexical.scores(true_SK[asked - 1]),
            "frequent words": (lexical.share_V * lexical.weight_V)[None].expand(len(asked), -1),
        }
        for name, score_QV in scores.items():
            columns = values.setdefault(name, {})
            for k, recall in _recalls(score_QV, [rows[s] for s in asked], lexical.weight_V):
                columns.setdefault(f"recall_at_{k}", []).extend(recall)
        error_Q = (bag_SK[asked - 1] - true_SK[asked]).square().sum(-1)
        square_Q = true_SK[asked].square().sum(-1).clamp(min=1e-9)
        values[MODEL].setdefault("explained", []).extend((1 - error_Q / square_Q).tolist())
        document_Q += [g] * len(asked)
        advance(1)
    drawn_RG = intervals.draw(len(documents.numbers), resamples, seed)
    for name, columns in values.items():
        found[name] = {key: intervals.mean(np.array(column), np.array(document_Q), drawn_RG) for key, column in columns.items()}
    return [{"predictor": name, "n": len(document_Q), **intervals.as_row(estimates)} for name, estimates in found.items()]


def _read(bag_SK: torch.Tensor) -> torch.Tensor:
    """Running sum of what was read, with decay."""
    total_K, out = torch.zeros_like(bag_SK[0]), []
    for bag_K in bag_SK:
        total_K = DECAY * total_K + bag_K
        out.append(total_K)
    return torch.stack(out)


def _recalls(score_QV: torch.Tensor, rows: Sequence[Sequence[int]], weight_V: torch.Tensor) -> Iterator[tuple[int, list[float]]]:
    best_QK = score_QV.topk(max(RECALL_AT)).indices.tolist()
    weights = weight_V.tolist()
    for k in RECALL_AT:
        recalls = []
        for best_K, ids in zip(best_QK, rows, strict=True):
            wanted, expected = set(ids), set(best_K[:k])
            total = sum(weights[token] for token in wanted)
            recalls.append(sum(weights[token] for token in wanted & expected) / total if total else float("nan"))
        yield k, recalls
