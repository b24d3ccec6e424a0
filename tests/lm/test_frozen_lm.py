"""The frozen LM: its prefix loss is the model's own, generation with cache equals generation without, hooks leave no trace."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lsm.errors import UserError
from lsm.lm.cache import growing_cache
from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Beside, Sampling, _choose, generate_ids
from lsm.lm.lora import attach_lora, detach_lora


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return FrozenLM.load("stub")


def prefixes(n: int, lm: FrozenLM, length: int = 3) -> torch.Tensor:
    return torch.randn(n, length, lm.width, generator=torch.Generator().manual_seed(1)) * lm.embedding_rms()


def test_tokenize_pads_on_the_right_and_keeps_the_end(lm: FrozenLM) -> None:
    ids_BT, mask_BT = lm.tokenize(["abc", "é" * 9], max_tokens=6, add_end=True)
    assert ids_BT.tolist() == [[97, 98, 99, 256, 256, 256], [195, 169, 195, 169, 195, 256]]
    assert mask_BT.sum(1).tolist() == [4, 6]
    assert lm.tokens.decode(ids_BT[0].tolist()) == "abc"


def test_prefix_loss_is_the_models_own_loss(lm: FrozenLM) -> None:
    prefix_BPH = prefixes(2, lm).requires_grad_()
    ids_BT, mask_BT = lm.tokenize(["a sentence", "another"], add_end=True)
    loss_B = lm.prefix_loss(prefix_BPH, ids_BT, mask_BT)
    logits = lm.model(inputs_embeds=torch.cat([prefix_BPH, lm.embed(ids_BT)], 1)).logits[:, 2:-1]
    plain_BT = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids_BT, reduction="none")
    torch.testing.assert_close(loss_B, (plain_BT * mask_BT).sum(1) / mask_BT.sum(1), rtol=1e-4, atol=1e-5)
    loss_B.sum().backward()
    assert prefix_BPH.grad is not None and (prefix_BPH.grad.abs().sum((1, 2)) > 0).all()


def test_padding_does_not_change_a_row(lm: FrozenLM) -> None:
    prefix_BPH = prefixes(2, lm)
    ids_BT, mask_BT = lm.tokenize(["short", "a good deal longer than that"], add_end=True)
    alone = lm.prefix_loss(prefix_BPH[:1], *lm.tokenize(["short"], add_end=True))
    torch.testing.assert_close(lm.prefix_loss(prefix_BPH, ids_BT, mask_BT)[:1], alone, rtol=1e-5, atol=1e-5)


def test_bias_adds_its_product_with_the_output_layer(lm: FrozenLM) -> None:
    prefix_BPH, bias_BH = prefixes(2, lm), torch.randn(2, lm.width)
    plain, _ = lm.step(prefix_BPH)
    lifted, _ = lm.step(prefix_BPH, bias_BH=bias_BH)
    torch.testing.assert_close(lifted, plain + bias_BH @ lm.head_VH.T, rtol=1e-4, atol=1e-4)


def test_cached_steps_equal_one_pass(lm: FrozenLM) -> None:
    ids_BT, _ = lm.tokenize(["abcdefgh", "hgfedcba"])
    whole, _ = lm.step(lm.embed(ids_BT))
    _, cache = lm.step(lm.embed(ids_BT[:, :5]))
    in_two, _ = lm.step(lm.embed(ids_BT[:, 5:]), cache)
    torch.testing.assert_close(in_two, whole, rtol=1e-4, atol=1e-4)


def test_a_growing_cache_holds_what_a_plain_one_holds(lm: FrozenLM) -> None:
    """Past its first buffer, with rows dropped, moved and repeated on the way."""
    from transformers.cache_utils import DynamicCache

    caches = [growing_cache(), DynamicCache(config=lm.model.config)]
    steps = [None] * 20 + [torch.tensor([0, 3, 2])] + [None] * 30 + [torch.tensor([1, 1, 0, 2])] + [None] * 3
    generator, rows = torch.Generator().manual_seed(0), 4
    for select in steps:
        ids_B1 = torch.randint(0, 256, (rows, 1), generator=generator)
        plain, grown = (lm.step(lm.embed(ids_B1), cache)[0] for cache in reversed(caches))
        torch.testing.assert_close(grown, plain, rtol=1e-5, atol=1e-5)
        if select is not None:
            rows = len(select)
            for cache in caches:
                cache.batch_select_indices(select)


def test_greedy_texts_are_those_of_generate(lm: FrozenLM) -> None:
    """Hugging Face's own loop from the same prefixes, with and without its n-gram rule."""
    prefix_BPH, end = prefixes(6, lm) * 4, lm.tokens.end_id
    for no_repeat in (0, 2):
        sampling = Sampling(max_new_tokens=24, no_repeat_tokens=no_repeat)
        found_BT = lm.model.generate(
            inputs_embeds=prefix_BPH, attention_mask=torch.ones(prefix_BPH.shape[:2], dtype=torch.int64), do_sample=False,
            max_new_tokens=24, no_repeat_ngram_size=no_repeat or None, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        theirs = [row[: row.index(end)] if end in row else row for row in found_BT.tolist()]
        assert generate_ids(lm, prefix_BPH, sampling) == theirs


def test_two_readings_multiply_and_the_first_says_when_to_end(lm: FrozenLM) -> None:
    prefix_BPH = prefixes(4, lm)
    context_BT, _ = lm.tokenize(["what", "was ", "said", "once"])
    first_BV, beside_BV = lm.step(prefix_BPH)[0].log_softmax(-1), lm.step(lm.embed(context_BT))[0].log_softmax(-1)
    wanted_BV = first_BV + 2.0 * beside_BV
    wanted_BV[:, lm.tokens.end_id] = -torch.inf
    open_BV = wanted_BV.softmax(-1) * (1 - first_BV[:, [lm.tokens.end_id]].exp())
    open_BV[:, lm.tokens.end_id] = first_BV[:, lm.tokens.end_id].exp()
    once = Sampling(max_new_tokens=1)
    rows = generate_ids(lm, prefix_BPH, once, beside=Beside(context_BT, 2.0))
    assert rows == [[int(p.argmax())] for p in open_BV]
    assert rows != generate_ids(lm, prefix_BPH, once), "the second reading makes a difference here"


def test_a_shared_context_reads_as_one_for_each_row_and_weight_zero_as_none(lm: FrozenLM) -> None:
    prefix_BPH, sampling = prefixes(5, lm), Sampling(max_new_tokens=12)
    context_1T, _ = lm.tokenize(["the text so far"])
    shared = generate_ids(lm, prefix_BPH, sampling, beside=Beside(context_1T, 0.7))
    assert shared == generate_ids(lm, prefix_BPH, sampling, beside=Beside(context_1T.expand(5, -1), 0.7))
    assert shared == [generate_ids(lm, row[None], sampling, beside=Beside(context_1T, 0.7))[0] for row in prefix_BPH]
    assert generate_ids(lm, prefix_BPH, sampling, beside=Beside(context_1T, 0.0)) == generate_ids(lm, prefix_BPH, sampling) != shared


def test_a_lift_makes_its_token_certain(lm: FrozenLM) -> None:
    lift_BV = torch.zeros(3, len(lm.head_VH))
    lift_BV[1, 77] = 1e4
    rows = generate_ids(lm, prefixes(3, lm), Sampling(max_new_tokens=2, no_repeat_tokens=0), lift_BV=lift_BV)
    assert rows[1] == [77, 77] and rows[0] != [77, 77] and rows[2] != [77, 77]


def test_a_batch_writes_what_each_row_writes_alone(lm: FrozenLM) -> None:
    prefix_BPH = prefixes(5, lm)
    sampling = Sampling(max_new_tokens=16, presence_penalty=0.3)
    together = generate_ids(lm, prefix_BPH, sampling)
    assert together == [generate_ids(lm, row[None], sampling)[0] for row in prefix_BPH]


def test_finished_rows_are_dropped_and_no_run_repeats(lm: FrozenLM) -> None:
    prefix_BPH = prefixes(6, lm)
    # A bias towards the end token that grows with the text ends rows at different lengths.
    end_H = lm.head_VH[lm.tokens.end_id]
    rows = generate_ids(
        lm, prefix_BPH, Sampling(max_new_tokens=40, no_repeat_tokens=2), bias=lambda spoken, n, rows: end_H * 0.15 * n * (1 + rows[:, None])
    )
    assert len({len(row) for row in rows}) > 1 and max(map(len, rows)) < 40
    for row in rows:
        pairs = list(pairwise(row))
        assert len(pairs) == len(set(pairs)) and lm.tokens.end_id not in row


def test_sampling_repeats_with_its_seed(lm: FrozenLM) -> None:
    sampling = Sampling(max_new_tokens=20, temperature=1.0, top_p=0.9)
    prefix_BPH = prefixes(3, lm)
    first, again, other = (generate_ids(lm, prefix_BPH, sampling, seeds_B=[s, s + 7, s]) for s in (0, 0, 1))
    assert first == again != other
    assert first == [generate_ids(lm, prefix_BPH[n : n + 1], sampling, seeds_B=[s])[0] for n, s in enumerate((0, 7, 0))]


def test_draws_have_the_probabilities_asked_for() -> None:
    """Of 1,000 uniform draws each token gets its share; with top_p the tokens beyond it get none and the others theirs of the rest."""
    probability_V = torch.tensor([0.5, 0.1, 0.15, 0.25])
    drawn_A = (torch.arange(1000) + 0.5) / 1000
    logits_AV = probability_V.log().expand(1000, 4)
    counts = torch.bincount(_choose(logits_AV, Sampling(temperature=1.0), drawn_A), minlength=4)
    torch.testing.assert_close(counts / 1000, probability_V, atol=2e-3, rtol=0)
    cut = torch.bincount(_choose(logits_AV, Sampling(temperature=1.0, top_p=0.7), drawn_A), minlength=4)
    torch.testing.assert_close(cut / 1000, torch.tensor([2 / 3, 0, 0, 1 / 3]), atol=2e-3, rtol=0)
    assert _choose(logits_AV, Sampling(temperature=1.0, top_p=0.01), drawn_A).eq(0).all()


def test_looking_among_the_likeliest_first_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from lsm.lm import generation

    logits_AV = torch.randn(500, 40, generator=torch.Generator().manual_seed(0)) * 2
    drawn_A, sampling = (torch.arange(500) + 0.5) / 500, Sampling(temperature=0.8, top_p=0.6)
    wanted_A = _choose(logits_AV, sampling, drawn_A)
    for most in (1, 12):  # too few for some rows, enough for all
        monkeypatch.setattr(generation, "_MOST_LIKELY", most)
        assert torch.equal(_choose(logits_AV, sampling, drawn_A), wanted_A)


def test_spoken_sum_reaches_the_bias(lm: FrozenLM) -> None:
    sums: list[torch.Tensor] = []

    def bias(spoken_AH: torch.Tensor, n_tokens: int, rows_A: torch.Tensor) -> torch.Tensor:
        sums.append(spoken_AH)
        return torch.zeros_like(spoken_AH)

    (row,) = generate_ids(lm, prefixes(1, lm), Sampling(max_new_tokens=5), bias=bias)
    torch.testing.assert_close(sums[-1][0], lm.embed(torch.tensor(row[: len(sums) - 1])).sum(0))


def test_hidden_and_inject(lm: FrozenLM) -> None:
    inputs = prefixes(2, lm, 4)
    assert torch.equal(lm.hidden(inputs, 0), inputs)
    before = lm.step(inputs)[0]
    with lm.inject(1, lambda stream: stream + 1.0):
        torch.testing.assert_close(lm.hidden(inputs, 1), lm.hidden(inputs, 1))
        assert not torch.allclose(lm.step(inputs)[0], before)
    assert torch.equal(lm.step(inputs)[0], before)


def test_lora_starts_as_no_change_trains_and_goes_away() -> None:
    lm = FrozenLM.load("stub")
    inputs = prefixes(2, lm)
    before = lm.step(inputs)[0]
    parameters = attach_lora(lm, 2)
    torch.testing.assert_close(lm.step(inputs)[0], before)
    ids_BT, mask_BT = lm.tokenize(["ab", "cd"], add_end=True)
    lm.prefix_loss(inputs, ids_BT, mask_BT).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())
    assert not lm.head_VH.requires_grad
    detach_lora(lm)
    assert torch.equal(lm.step(inputs)[0], before)


def test_a_folder_without_an_lm_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no causal LM"):
        FrozenLM.load(str(tmp_path))


@pytest.mark.real
def test_the_default_lm_completes_a_sentence() -> None:
    lm = FrozenLM.load("smollm2-135m-instruct")
    ids_BT, _ = lm.tokenize(["The capital of France is"])
    (text,) = lm.generate(lm.embed(ids_BT), Sampling(max_new_tokens=4))
    assert "Paris" in text
