"""Contexts given as vectors, read once by a frozen LM, and any number of prompts after each: answers written and answers scored.

Shape letters: C contexts, N prompts, P context positions, T tokens, H hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from lsm.lm.generation import Sampling
from lsm.lm.tokens import pad_ids

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM


@dataclass
class Read:
    """What the LM keeps of contexts that it has read, a row for each prompt that will follow."""

    cache: Any
    mask_NP: Tensor


def read_preamble(lm: FrozenLM, ids: Sequence[int] = ()) -> Read:
    """What the LM keeps of tokens before every context, behind those that it wants before any text: one row, without gradient."""
    first = [*lm.tokens.start_ids, *ids]
    mask_1F = torch.ones(1, len(first), dtype=torch.bool, device=lm.device)
    if not first:
        return Read(None, mask_1F)
    with torch.no_grad():
        return Read(lm.read(lm.embed(torch.tensor([first], device=lm.device)))[1], mask_1F)


def read_contexts(
    lm: FrozenLM,
    contexts: Sequence[Tensor],
    row_of_N: Sequence[int],
    *,
    preamble: Read,
    around: AbstractContextManager[Any] | None = None,
) -> Read:
    """Read each context [P, H] (P may differ, and be 0) once; gradients flow into it.

    Args:
        row_of_N: for each prompt to come, which context it follows.
        preamble: stands before every context; it is copied.
        around: open while the contexts are read, padded on the right and without the preamble, such as `lm.inject`.
    """
    rows_N = torch.tensor(row_of_N, device=lm.device)
    cache, n_contexts, longest = copy.deepcopy(preamble.cache), len(contexts), max(map(len, contexts))
    mask_CP = preamble.mask_NP.expand(n_contexts, -1)
    if cache is not None:
        cache.batch_repeat_interleave(n_contexts)
    if longest:
        body_CPH = pad_sequence([context.to(lm.dtype) for context in contexts], batch_first=True)
        places_P = torch.arange(longest, device=lm.device)
        mask_CP = torch.cat([mask_CP, places_P < torch.tensor([[len(context)] for context in contexts], device=lm.device)], dim=1)
        with around or nullcontext():
            _, cache = lm.read(body_CPH, cache, mask_CP)
    if cache is not None:
        cache.batch_select_indices(rows_N)
    return Read(cache, mask_CP[rows_N])


def answer_hidden(lm: FrozenLM, read: Read, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tensor:
    """Final hidden states [tokens of all answers together, H] from which the output layer tells each answer token; `read` is used up.

    Prompts must not be empty.
    """
    return answers_read(lm, read, prompts, answers)[0]


def answers_read(lm: FrozenLM, read: Read, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> tuple[Tensor, Read]:
    """`answer_hidden`, and a reading of each prompt without its last token, from which the LM can go on to write; `read` is used up."""
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids_NT, mask_NT = (tensor.to(lm.device) for tensor in pad_ids(whole, lm.tokens.end_id))
    cache = DynamicCache(config=lm.model.config) if read.cache is None else read.cache
    hidden_NTH = lm.final_hidden(lm.embed(ids_NT), cache, torch.cat([read.mask_NP, mask_NT], dim=1))
    spans = zip(hidden_NTH, prompts, answers, strict=True)
    hidden = torch.cat([states_TH[len(prompt) - 1 : len(prompt) + len(answer) - 1] for states_TH, prompt, answer in spans])
    before_N1 = torch.tensor([[len(prompt) - 1] for prompt in prompts], device=lm.device)
    asked_NT = torch.arange(ids_NT.shape[1], device=lm.device) < before_N1  # what stands behind stays in the cache, unseen
    return hidden, Read(cache, torch.cat([read.mask_NP, asked_NT], dim=1))


def write_answers(lm: FrozenLM, read: Read, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[str]:
    """The first line that the LM writes after each prompt, greedily; `read` is used up."""
    longest = max(map(len, prompts))
    ids_NT = torch.tensor([[lm.tokens.end_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=lm.device)
    mask_NT = torch.tensor([[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts], device=lm.device)
    stop_ids = tuple(lm.tokens.encode(["\n"])[0][-1:])
    sampling = Sampling(max_new_tokens=max_new_tokens, no_repeat_tokens=0, stop_ids=stop_ids)
    texts = lm.generate(lm.embed(ids_NT), sampling, cache=read.cache, mask_BP=torch.cat([read.mask_NP, mask_NT], dim=1))
    return [text.split("\n")[0].strip() for text in texts]
