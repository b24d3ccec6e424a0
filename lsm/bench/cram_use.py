"""Is a crammed vector of use to its LM? Questions about the text, answered from the vector; unrelated sentences behind it.

Shape letters: P prefix positions, H hidden width, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lsm.bench.cram import RESAMPLES
from lsm.bench.intervals import as_row, draw, mean
from lsm.bench.text_metrics import token_f1
from lsm.lm.generation import Sampling
from lsm.lm.loss import frozen_divergence
from lsm.lm.tokens import opening_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lsm.lm.frozen import FrozenLM


@dataclass(frozen=True)
class Asked:
    """A short text of our own, a question about it, and the answer that stands in it."""

    text: str
    question: str
    answer: str


QUESTIONS = (
    Asked("The red barn beside the mill belongs to Anna Weber.", "Who owns the red barn?", "Anna Weber"),
    Asked("Peter keeps the spare key under the blue flowerpot.", "Where is the spare key?", "under the blue flowerpot"),
    Asked("The ferry to Norvik leaves every Tuesday at nine.", "On which day does the ferry leave?", "Tuesday"),
    Asked("Old Mr. Hart repaired clocks in the town of Selby.", "What did Mr. Hart repair?", "clocks"),
    Asked("Our dog Bruno is afraid of nothing but thunder.", "What is Bruno afraid of?", "thunder"),
    Asked("The bridge was built of stone by monks in 1304.", "Who built the bridge?", "monks"),
    Asked("Clara paid forty crowns for the green violin.", "How much did Clara pay?", "forty crowns"),
    Asked("The library closes early on the first Friday of May.", "What closes early?", "the library"),
)
UNRELATED = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "If you want to bake bread, you need flour, water, salt and yeast.",
    "The sun rises in the east and sets in the west.",
    "Once upon a time there was a little girl who lived in a village near the forest.",
)
"""None of them is among those that the KL term keeps."""
_ASK, _ANSWER_TOKENS = "\nQuestion: {question}\nAnswer:", 12


class Usefulness:
    """Asks one LM, with one kind of context before its prompts."""

    def __init__(self, lm: FrozenLM) -> None:
        self.lm = lm
        self._start_PH = self._embedded(opening_ids(lm.tokens))

    def text(self, text: str) -> Tensor:
        """The text itself as context, [P, H]: what a vector stands in for."""
        return torch.cat([self._start_PH, self._embedded(self.lm.tokens.encode_exact([text])[0])])

    def nothing(self) -> Tensor:
        """No context but what the LM expects before every text, or one end token."""
        return self._start_PH

    def row(self, contexts: Sequence[Tensor], asked: Sequence[Asked], *, seed: int) -> dict[str, Any]:
        """A row of the table, of one kind of context: means with intervals from resampling texts, and the answers."""
        answers, measured = self.answers(contexts, asked)
        drawn_RG, which_N = draw(len(asked), RESAMPLES, seed), np.arange(len(asked))
        estimates = {name: mean(np.array(values), which_N, drawn_RG) for name, values in (measured | self.harm(contexts)).items()}
        return {"n": len(asked), "answers": answers} | as_row(estimates)

    @torch.no_grad()
    def answers(self, contexts: Sequence[Tensor], asked: Sequence[Asked]) -> tuple[list[str], dict[str, list[float]]]:
        """Free-running answers, their token F1, and nats a token of the true ones."""
        texts, nats, f1 = [], [], []
        for context_PH, each in zip(contexts, asked, strict=True):
            prompt_PH = torch.cat([context_PH, self._embedded(self.lm.tokens.encode([_ASK.format(question=each.question)])[0])])[None]
            ids_BT, mask_BT = self.lm.tokenize([" " + each.answer])
            nats.append(float(self.lm.prefix_loss(prompt_PH, ids_BT, mask_BT)[0]))
            given = self.lm.generate(prompt_PH, Sampling(max_new_tokens=_ANSWER_TOKENS, no_repeat_tokens=0))[0]
            texts.append(given.split("\n")[0].strip())
            f1.append(token_f1(texts[-1], each.answer))
        return texts, {"answer_f1": f1, "answer_nats": nats}

    @torch.no_grad()
    def harm(self, contexts: Sequence[Tensor]) -> dict[str, list[float]]:
        """Of each context, over unrelated sentences behind it: KL in nats a token from the LM without it, and how often the most probable
        next token stays the same."""
        kl, same = [[0.0] * len(contexts) for _ in range(2)]
        for sentence in UNRELATED:
            row = self._embedded(self.lm.tokens.encode_exact([sentence])[0])
            alone_TH = self._told(self._start_PH, row)
            best_T = self.lm.logits(alone_TH).argmax(-1)
            for n, context_PH in enumerate(contexts):
                behind_TH = self._told(context_PH, row)
                kl[n] += float(frozen_divergence(alone_TH, behind_TH, self.lm.head_VH).mean()) / len(UNRELATED)
                same[n] += float((self.lm.logits(behind_TH).argmax(-1) == best_T).float().mean()) / len(UNRELATED)
        return {"unrelated_kl": kl, "unrelated_same": same}

    def _told(self, context_PH: Tensor, row_TH: Tensor) -> Tensor:
        inputs = torch.cat([context_PH.to(row_TH.dtype), row_TH])[None]
        return self.lm.final_hidden(inputs)[0, len(context_PH) :]

    def _embedded(self, ids: list[int]) -> Tensor:
        return self.lm.embed(torch.tensor(ids, dtype=torch.int64, device=self.lm.device))
