"""Contexts read once and shared by prompts give what each prompt gives alone, with and without padding."""

from __future__ import annotations

import torch

from lsm.lm.contexts import answer_hidden, answers_read, read_contexts, read_preamble, write_answers
from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Sampling

CONTEXTS = ["Anna lived in Leeds.", "Ruth.", "Maria built a house in Bath."]
ROWS, PROMPTS, ANSWERS = [0, 2, 1, 2], [b"Who?", b"Where was it?", b"Why did she?", b"W"], [b"Anna\n", b"Bath\n", b"no\n", b"a\n"]


def vectors(lm: FrozenLM) -> list[torch.Tensor]:
    return [lm.embed(torch.tensor([list(text.encode())]))[0] for text in CONTEXTS]


def test_shared_reading_is_each_reading_alone(lm: FrozenLM) -> None:
    preamble = read_preamble(lm, list(b"Text:"))
    together = answer_hidden(
        lm, read_contexts(lm, vectors(lm), ROWS, preamble=preamble), [list(p) for p in PROMPTS], [list(a) for a in ANSWERS]
    )
    alone = []
    for row, prompt, answer in zip(ROWS, PROMPTS, ANSWERS, strict=True):
        ids = torch.tensor([list(b"Text:" + CONTEXTS[row].encode() + prompt + answer)])
        alone.append(lm.final_hidden(lm.embed(ids))[0, -len(answer) - 1 : -1])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_written_answers_are_those_of_each_alone(lm: FrozenLM) -> None:
    read = read_contexts(lm, vectors(lm), ROWS, preamble=read_preamble(lm, list(b"Text:")))
    again = read_contexts(lm, vectors(lm), ROWS, preamble=read_preamble(lm, list(b"Text:")))
    texts = write_answers(lm, read, [list(p) for p in PROMPTS], max_new_tokens=8)
    for row, prompt, text in zip(ROWS, PROMPTS, texts, strict=True):
        prefix = lm.embed(torch.tensor([list(b"Text:" + CONTEXTS[row].encode() + prompt)]))
        alone = lm.generate(prefix, Sampling(max_new_tokens=8, no_repeat_tokens=0, stop_ids=(10,)))[0]
        assert text == alone.split("\n")[0].strip()
    _, asked = answers_read(lm, again, [list(p) for p in PROMPTS], [list(a) for a in ANSWERS])
    assert write_answers(lm, asked, [[p[-1]] for p in PROMPTS], max_new_tokens=8) == texts, "scored first, then written"


def test_empty_contexts_are_no_contexts(lm: FrozenLM) -> None:
    nothing = [torch.zeros(0, lm.width)] * 2
    without = answer_hidden(lm, read_contexts(lm, nothing, [0, 1], preamble=read_preamble(lm)), [[65], [66]], [[67], [68]])
    plain = torch.cat([lm.final_hidden(lm.embed(torch.tensor([[prompt]])))[0] for prompt in (65, 66)])
    torch.testing.assert_close(without, plain, atol=1e-5, rtol=1e-4)


def test_gradients_flow_into_contexts_through_the_cache(lm: FrozenLM) -> None:
    context = torch.randn(5, lm.width).requires_grad_()
    read = read_contexts(lm, [context], [0, 0], preamble=read_preamble(lm, [70]))
    answer_hidden(lm, read, [[65], [66, 67]], [[68], [69]]).pow(2).sum().backward()
    assert context.grad is not None and (context.grad.abs().sum(1) > 0).all()
