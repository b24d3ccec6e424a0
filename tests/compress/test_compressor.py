"""Compressors of every kind: windows keep to their texts, gradients arrive, every objective is finite, a hybrid begins with text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lsm.compress.objectives import span_term
from lsm.compress.settings import CompressSettings, DataSettings, ObjectiveSettings
from lsm.compress.task import CompressTask
from lsm.connector.blocks import Score
from lsm.connector.compressor import Compressor
from lsm.connector.pooling import window_softmax, windows_of_kept
from lsm.connector.settings import CompressorSettings
from lsm.errors import UserError
from lsm.lm.contexts import answer_hidden, read_contexts, read_preamble
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import detach_lora, has_lora
from lsm.lm.soft import read_soft
from lsm.text.questions import Question

TEXTS = ["Anna lived in Leeds for years.", "Ruth, größer.", "A"]
DATA = DataSettings(max_context_tokens=200, contexts=2, questions_per_context=2, evaluation_questions=4, held_out_fraction=0.3, shots=False)


def words(texts: list[str]) -> list[tuple[torch.Tensor, list[int]]]:
    """Token states of an encoder with a token a character pair."""
    table = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    return [(table[[ord(c) % 256 for c in text[::2]]], list(range(0, len(text), 2))) for text in texts]


def made(lm: FrozenLM, **settings: object) -> Compressor:
    torch.manual_seed(0)
    return Compressor(CompressorSettings(**settings), lm, words, 12, list(b"Text:"))  # ty: ignore[invalid-argument-type]


def test_untrained_mean_pooling_is_the_mean_word_embedding(lm: FrozenLM) -> None:
    compressed = made(lm, layer=1, pooling="mean")(TEXTS, lm, 4)
    for text, tokens, word in zip(TEXTS, compressed.soft.tokens, compressed.words, strict=True):
        ids = torch.tensor([list(text.encode())])
        wanted = torch.stack([part.mean(0) for part in lm.embed(ids)[0].split(4)])
        torch.testing.assert_close(tokens, wanted)
        torch.testing.assert_close(word, wanted)


def test_one_token_a_window_replays_the_text(lm: FrozenLM) -> None:
    soft = made(lm, layer=0, rarity=2.0)([TEXTS[0]], lm, 1).soft
    torch.testing.assert_close(soft.tokens[0], lm.embed(torch.tensor([list(TEXTS[0].encode())]))[0])


def test_a_window_far_below_the_highest_score_keeps_its_weights() -> None:
    logit_T = torch.tensor([300.0, 299.0, -300.0, -301.0, -300.0], requires_grad=True)
    weight_T = window_softmax(logit_T, torch.tensor([0, 0, 1, 1, 2]), 3)
    pair = torch.softmax(torch.tensor([1.0, 0.0]), 0)
    torch.testing.assert_close(weight_T, torch.cat([pair, pair, torch.ones(1)]))
    weight_T[2].backward()
    assert logit_T.grad is not None and float(logit_T.grad[2]) == pytest.approx(float(pair.prod()), rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "lm", "layer": 1, "pooling": "queries"},
        {"source": "lm", "layer": 2, "code_dim": 5, "hidden": 8, "depths": (1, 2)},
        {"source": "lm", "layer": 1, "pooling": "kept", "rarity": 1.0, "states": (1,), "hidden": 8},
        {"source": "lm", "layer": 1, "pooling": "kept", "score_hidden": 4, "score_reach": 2},
        {"source": "lm", "layer": 0, "pooling": "mean", "states": (1, 2)},
        {"source": "encoder", "pooling": "weighted"},
        {"source": "encoder", "codebook": 4},
        {"source": "bytes", "pooling": "mean", "match": "rms"},
        {"source": "bytes", "match": "distribution"},
    ],
    ids=str,
)
def test_a_text_is_compressed_alike_in_any_batch(lm: FrozenLM, settings: dict) -> None:
    compressor = made(lm, **settings).eval()
    with torch.no_grad():
        together, alone = compressor(TEXTS, lm, 4), [compressor([text], lm, 4) for text in TEXTS]
    for row, one in enumerate(alone):
        torch.testing.assert_close(together.soft.tokens[row], one.soft.tokens[0], atol=1e-5, rtol=1e-4)
        assert together.words[row].shape == together.soft.tokens[row].shape
        for layer, states in one.soft.deep.items():
            torch.testing.assert_close(together.soft.deep[layer][row], states[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_a_score_sees_as_far_as_it_reaches(reach: int) -> None:
    torch.manual_seed(0)
    score, state_TF = Score(6, 5, reach), torch.randn(9, 6)
    assert not score(state_TF).any()
    torch.nn.init.normal_(score[-1].weight)
    changed = state_TF.index_fill(0, torch.tensor([4]), 1.0)
    moved = (score(changed) != score(state_TF)).nonzero()[:, 0].tolist()
    assert moved == list(range(4 - reach, 5 + reach))
    torch.testing.assert_close(score(state_TF[:1]), score(torch.nn.functional.pad(state_TF[:1], (0, 0, reach, reach)))[reach : reach + 1])


def test_windows_end_at_what_is_kept() -> None:
    kept_P, window_T = windows_of_kept(torch.tensor([0.0, 5.0, 1.0, 2.0, 9.0, 0.0]), 3)
    assert kept_P.tolist() == [1, 3, 4] and window_T.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("text_tokens", [0, 4])
def test_every_token_kept_with_every_state_is_the_text(lm: FrozenLM, text_tokens: int) -> None:
    compressor = made(lm, layer=0, pooling="kept", states=(1,), cue=2, text_tokens=text_tokens).eval()  # the stub has two layers
    prompts, answers = [list(b"?"), list(b"Who?"), list(b"So")], [list(b" A."), list(b" B"), list(b" C")]
    preamble = read_preamble(lm, list(b"Text:"))
    assert compressor.cue is not None
    with torch.no_grad():
        soft = compressor(TEXTS, lm, 1).soft
        read = read_soft(lm, soft, [0, 1, 2], preamble)
        whole = [torch.cat([lm.embed(torch.tensor([list(text.encode())]))[0], compressor.cue]) for text in TEXTS]
        wanted = answer_hidden(lm, read_contexts(lm, whole, [0, 1, 2], preamble=preamble), prompts, answers)
        if not text_tokens:  # a hybrid reads its states without the text before them
            torch.testing.assert_close(answer_hidden(lm, read, prompts, answers), wanted, atol=1e-4, rtol=1e-4)
        soft.deep[1] = [states + 1 for states in soft.deep[1]]
        changed = read_soft(lm, soft, [0, 1, 2], preamble)
        assert not torch.allclose(answer_hidden(lm, changed, prompts, answers), wanted, atol=1e-2)


def test_a_text_without_states_gives_one_code(lm: FrozenLM) -> None:
    compressor = made(lm, source="encoder").eval()
    assert len(compressor([""], lm, 4).soft.tokens[0]) == 1


def test_hybrid_begins_with_its_text_and_travels(lm: FrozenLM) -> None:
    compressor = made(lm, layer=1, text_tokens=4, depths=(1,)).eval()
    soft = compressor([TEXTS[0]], lm, 4).soft
    torch.testing.assert_close(soft.tokens[0][:4], lm.embed(torch.tensor([list(b"Anna")]))[0])
    codes, heads = compressor.send([TEXTS[0]], lm, 4)
    assert heads == ["Anna"]
    torch.testing.assert_close(compressor.receive(codes, heads, lm).tokens[0], soft.tokens[0])


def test_ridge_regression_brings_codes_near_the_words(lm: FrozenLM, questions: list[Question]) -> None:
    compressor = made(lm, source="encoder", pooling="mean")
    texts = [one.text for one in questions]

    def error() -> float:
        found = compressor(texts, lm, 2)
        return float(torch.cat([(a - b).pow(2).mean(1) for a, b in zip(found.soft.tokens, found.words, strict=True)]).mean().detach())

    before = error()
    compressor.fit_words(texts, lm, 2)
    assert error() < 0.7 * before


@pytest.mark.parametrize(
    "objectives",
    [
        {"distill": 1.0, "temperature": 2.0},
        {"reconstruct": 0.5, "align": 1.0, "anchor": 1.0},
        {"diversity": 1.0, "contrastive": 1.0},
        {"scheduled": 0.5},
        {"first_tokens": 1},
    ],
    ids=str,
)
def test_every_objective_reaches_the_encoder(lm: FrozenLM, questions: list[Question], objectives: dict) -> None:
    settings = CompressSettings(
        lm="stub", ratios=(4,), encoder=CompressorSettings(layer=1), objectives=ObjectiveSettings(**objectives), data=DATA
    )
    task = CompressTask(questions, lm, settings, seed=0)
    loss, parts = task.loss(task.batch(0))
    loss.backward()
    residual = task.compressor.residual
    assert residual is not None and residual.weight.grad is not None and float(residual.weight.grad.abs().sum()) > 0
    assert torch.isfinite(loss) and loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-5)


def test_scores_learn_what_answers_are_made_of(lm: FrozenLM, questions: list[Question]) -> None:
    asked = ObjectiveSettings(spans_steps=1)
    settings = CompressSettings(lm="stub", ratios=(4,), encoder=CompressorSettings(layer=0, pooling="kept"), objectives=asked, data=DATA)
    task = CompressTask(questions, lm, settings, seed=0)
    optimizer, losses = torch.optim.Adam(task.module.parameters(), lr=0.03), []
    for _ in range(20):
        loss, parts = task.loss(task.batch(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(parts["spans"]))
    assert set(parts) == {"spans"} and losses[0] == pytest.approx(np.log(2)) and losses[-1] < 0.8 * losses[0]
    assert set(task.loss(task.batch(1))[1]) == {"answer"}
    scores, text = [torch.tensor([-9.0, 9.0, 9.0, -9.0])], "abcd"
    assert float(span_term(scores, lm, [text], [["bc", "not there"]])) < 0.001 < 4 < float(span_term(scores, lm, [text], [["d"]]))


def test_a_resumed_run_teaches_scores_from_the_same_states(lm: FrozenLM, questions: list[Question]) -> None:
    encoder = CompressorSettings(layer=2, pooling="kept", rarity=1.0, score_hidden=4, score_reach=1)
    settings = CompressSettings(lm="stub", encoder=encoder, objectives=ObjectiveSettings(spans_steps=9, spans_texts=2), data=DATA)
    unbroken, resumed = (CompressTask(questions, lm, settings, seed=0) for _ in range(2))
    for task in (unbroken, resumed):
        assert task.compressor.score is not None
        torch.manual_seed(1)
        torch.nn.init.normal_(task.compressor.score[-1].weight)
    losses = [float(unbroken.loss(unbroken.batch(index))[0]) for index in range(9)]
    assert len(unbroken.batch(0).texts) == 2 and len(set(losses)) > 1
    assert float(resumed.loss(resumed.batch(8))[0]) == losses[8]
    text = unbroken.texts[0]
    kept, ids = unbroken.compressor.to_score(text, lm)
    found = unbroken.compressor.encode([text, "Something else."], lm, 4)[2][0]
    torch.testing.assert_close(unbroken.compressor.scores(kept, ids), found, atol=1e-4, rtol=1e-4)
    assert set(unbroken.loss(unbroken.batch(9))[1]) == {"answer"}


def test_kept_tokens_train_their_score_and_their_correction(lm: FrozenLM, questions: list[Question]) -> None:
    encoder = CompressorSettings(layer=1, pooling="kept", rarity=1.0, states=(1,), hidden=8)
    task = CompressTask(questions, lm, CompressSettings(lm="stub", ratios=(4,), encoder=encoder, data=DATA), seed=0)
    task.loss(task.batch(0))[0].backward()
    compressor = task.compressor
    assert compressor.score is not None and compressor.mlp is not None
    for weight in (compressor.score[-1].weight, compressor.mlp.down.weight):
        assert weight.grad is not None and float(weight.grad.abs().sum()) > 0


def test_first_steps_only_reconstruct(lm: FrozenLM, questions: list[Question]) -> None:
    settings = CompressSettings(
        lm="stub", ratios=(4,), objectives=ObjectiveSettings(reconstruct_steps=1), encoder=CompressorSettings(layer=1), data=DATA
    )
    task = CompressTask(questions, lm, settings, seed=0)
    assert set(task.loss(task.batch(0))[1]) == {"reconstruct"}
    assert set(task.loss(task.batch(1))[1]) == {"answer"}


def test_lora_trains_the_reader_and_leaves_the_answering_lm(questions: list[Question]) -> None:
    lm = FrozenLM.load("stub")
    settings = CompressSettings(lm="stub", ratios=(4,), encoder=CompressorSettings(layer=2, lora_rank=2), data=DATA)
    task = CompressTask(questions, lm, settings, seed=0)
    torch.nn.init.normal_(task.compressor.residual.weight)  # ty: ignore[unresolved-attribute]
    without = task._held_out_loss(*held_out(task), None)
    for _ in range(2):  # the first step moves the factor that starts at zero
        task.loss(task.batch(0))[0].backward()
        assert any(float(p.grad.abs().sum()) > 0 for p in task.compressor.lora.values() if p.grad is not None)
        with torch.no_grad():
            for parameter in task.compressor.lora.values():
                parameter -= 0.5 * parameter.grad if parameter.grad is not None else 0
    assert task._held_out_loss(*held_out(task), None) == pytest.approx(without, abs=1e-6)
    detach_lora(lm)
    assert not has_lora(lm)


def test_one_held_out_text_stands_against_another_article(lm: FrozenLM, questions: list[Question]) -> None:
    settings = CompressSettings(lm="stub", ratios=(4,), encoder=CompressorSettings(layer=1), data=DATA)
    task = CompressTask(questions[:4], lm, settings, seed=0)  # two articles of a text each
    (text,) = {one.text for one in task.held_out}
    assert task.other[text] == task.texts[0] != text
    with torch.no_grad():
        scores = task.evaluate()
    assert scores["loss_shuffled_text"] != scores["loss"]


def test_a_run_goes_on_with_the_same_questions_only(lm: FrozenLM, questions: list[Question]) -> None:
    settings = CompressSettings(lm="stub", ratios=(4,), encoder=CompressorSettings(layer=1), data=DATA)

    def asked(rows: list[Question]) -> str:
        return CompressTask(rows, lm, settings, seed=0).fingerprint()["questions"]

    whole = CompressTask(questions, lm, settings, seed=0)
    assert asked(list(questions)) == asked(questions)
    changed = replace(whole.held_out[0], answers=("other",))
    assert asked([changed if one == whole.held_out[0] else one for one in questions]) != asked(questions)
    pairs = [replace(one, article=f"{one.article}, another name") for one in questions]
    assert asked(pairs) != asked(questions)


def held_out(task: CompressTask) -> tuple[list[str], list[Question]]:
    return list(dict.fromkeys(one.text for one in task.held_out)), task.held_out


def test_settings_that_do_not_fit_are_named_together() -> None:
    with pytest.raises(UserError, match="lora_rank needs"):
        CompressorSettings(source="bytes", lora_rank=4)
    with pytest.raises(UserError, match="every weight is 0"):
        ObjectiveSettings(answer=0)
