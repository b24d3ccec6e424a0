"""The loss against the LM that reads the text: its value and gradient are those of full logits, and the LM reads what it should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lsm.corpus.reader import Corpus
from lsm.decode.adapter import AdapterHome, PrefixAdapter
from lsm.decode.decoders import PrefixDecoder
from lsm.decode.settings import AdapterSettings
from lsm.decode.word_losses import PrefixLosses
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora, detach_lora

TEXTS = ["The fox sleeps at home.", "A crow.", "The wolf waits."]
BEFORE = [["The hare sings.", "It is late."], ["Once."], ["The hare runs in the wood.", "The fox waits.", "So do we."]]


def prefix_decoder(corpus: Corpus, *, lora_rank: int = 0) -> PrefixDecoder:
    lm = FrozenLM.load("stub")
    home = AdapterHome(corpus.encoder, lm.fingerprint(), corpus.dim, lm.width, len(lm.head_VH), lm.embedding_rms())
    torch.manual_seed(0)
    adapter = PrefixAdapter(AdapterSettings(prefix_length=2, hidden=16, blocks=0, lora_rank=lora_rank), home)
    if lora_rank:
        adapter.lora = attach_lora(lm, lora_rank)
        with torch.no_grad():
            for parameter in adapter.lora.values():
                parameter.normal_(std=0.3)
        detach_lora(lm)
    return PrefixDecoder(lm, adapter)


def direct(decoder: PrefixDecoder, z_ND: Tensor, *, max_tokens: int, context_tokens: int) -> Tensor:
    """The loss one text at a time with all logits, through an LM of its own on the teacher's side."""
    plain, losses = FrozenLM.load("stub"), []
    for z_D, text, before in zip(z_ND, TEXTS, BEFORE, strict=True):
        own = list(text.encode())[:max_tokens]
        read = list("".join(f"{sentence}\n" for sentence in before).encode())[-context_tokens:]
        with torch.no_grad():
            teacher_TV = plain.logits(plain.final_hidden(plain.embed(torch.tensor([read + own])))[0, len(read) - 1 : -1])
        trunk_1F, ids_1T = decoder.adapter.trunk(z_D[None]), torch.tensor([own])
        embedded_1TH = decoder.lm.embed(ids_1T)
        spoken_1TH = torch.cat([torch.zeros_like(embedded_1TH[:, :1]), embedded_1TH.cumsum(1)[:, :-1]], 1)
        lift_1TH = decoder.adapter.bias(trunk_1F, spoken_1TH, torch.arange(len(own)))
        prefix_1PH = decoder.adapter.prefix(trunk_1F, decoder.lm).prefix_BPH
        hidden_TH = decoder.lm.final_hidden(torch.cat([prefix_1PH, embedded_1TH[:, :-1]], 1))[0, prefix_1PH.shape[1] - 1 :]
        student_TV = decoder.lm.logits(hidden_TH, None if lift_1TH is None else lift_1TH[0])
        log_p_TV, log_q_TV = teacher_TV.log_softmax(-1), student_TV.log_softmax(-1)
        losses.append((log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize(("max_tokens", "context_tokens"), [(200, 200), (9, 5), (1, 1)])
def test_it_is_the_divergence_of_full_logits(small_corpus: Corpus, lora_rank: int, max_tokens: int, context_tokens: int) -> None:
    decoder = prefix_decoder(small_corpus, lora_rank=lora_rank)
    losses = PrefixLosses(decoder, max_tokens=max_tokens, context_tokens=context_tokens)
    fused_ND, plain_ND = (torch.tensor(small_corpus.vectors(0)[:3], dtype=torch.float32, requires_grad=True) for _ in range(2))
    fused_N = losses.text_lm(fused_ND, TEXTS, BEFORE)
    plain_N = direct(decoder, plain_ND, max_tokens=max_tokens, context_tokens=context_tokens)
    torch.testing.assert_close(fused_N, plain_N, rtol=1e-4, atol=1e-4)
    assert (fused_N > 0).all()
    weight_N = torch.tensor([1.0, 2.0, -1.0])
    (fused_N * weight_N).sum().backward()
    (plain_N * weight_N).sum().backward()
    assert fused_ND.grad is not None and plain_ND.grad is not None and plain_ND.grad.abs().max() > 0
    torch.testing.assert_close(fused_ND.grad, plain_ND.grad, rtol=1e-3, atol=1e-5)


def test_nothing_before_is_refused(small_corpus: Corpus) -> None:
    losses = PrefixLosses(prefix_decoder(small_corpus), max_tokens=8)
    with pytest.raises(AssertionError, match="nothing stands before"):
        losses.text_lm(torch.ones(1, small_corpus.dim), TEXTS[:1], [[]])


def test_the_adapter_is_left_as_it_is(small_corpus: Corpus) -> None:
    decoder = prefix_decoder(small_corpus)
    losses = PrefixLosses(decoder, max_tokens=8)
    before = losses.name
    z_ND = torch.tensor(small_corpus.vectors(0)[:3], dtype=torch.float32, requires_grad=True)
    (losses.words(z_ND, TEXTS) + losses.text_lm(z_ND, TEXTS, BEFORE)).sum().backward()
    assert all(parameter.grad is None for parameter in decoder.adapter.parameters()) and losses.name == before
    assert prefix_decoder(small_corpus, lora_rank=2).adapter.sha256()[:16] not in before
