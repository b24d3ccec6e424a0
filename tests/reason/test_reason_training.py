"""Training: batches come from their index alone, the loss falls, resumed = unbroken, bitwise; both real classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.decode.adapter import PrefixAdapter
from lsm.decode.settings import AdapterSettings
from lsm.encode.encoder import load_encoder
from lsm.encode.token_states import KeptStates, padded, token_rows
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.reason.settings import DataSettings, MiddleSettings, ReasonSettings, StackSettings
from lsm.reason.stack import Stack
from lsm.reason.training import ReasonTask
from lsm.text.pairs import Pair
from lsm.training.loop import Trainer
from lsm.training.settings import OptimizerSettings


def settings(
    *, steps: int = 6, aim: float = 0.0, aim_steps: int = 0, keep: bool = False, latent: int = 64, lora: int = 0, soft_words: bool = False
) -> ReasonSettings:
    return ReasonSettings(
        aim_steps=aim_steps,
        aim_rows=10,
        steps=steps,
        eval_every=steps,
        save_every=2,
        threads=1,
        ema_decay=None,
        precision="float32",
        aim_weight=aim,
        optimizer=OptimizerSettings(lr=2e-2, warmup_steps=2),
        data=DataSettings(
            max_input_tokens=100, max_target_tokens=40, held_out_fraction=0.2, batch_positions=300, evaluation_rows=8, keep_states=keep
        ),
        stack=StackSettings(
            compress_hidden=32,
            latent_dim=latent,
            middle=MiddleSettings(hidden=32, layers=1),
            expansion=AdapterSettings(prefix_length=2, hidden=32, lexical=soft_words, soft_words=soft_words, lora_rank=lora),
        ),
    )


def task_of(pairs: list[Pair], wanted: ReasonSettings, **how: object) -> ReasonTask:
    return ReasonTask(pairs, load_encoder("stub"), FrozenLM.load("stub"), wanted, seed=0, **how)  # ty: ignore[invalid-argument-type]


def test_batches_depend_on_their_index_alone(pairs: list[Pair]) -> None:
    task, again = task_of(pairs, settings()), task_of(pairs, settings())
    for index in (0, 5, 2):
        again.batch(index + 1)
        one, other = task.batch(index), again.batch(index)
        assert one.numbers_B.tolist() == other.numbers_B.tolist()
        assert torch.equal(one.states_BSE, other.states_BSE) and torch.equal(one.ids_BT, other.ids_BT)


def test_states_in_groups_are_states_one_by_one(pairs: list[Pair]) -> None:
    texts = [pair.text[: 20 + 3 * number] for number, pair in enumerate(pairs[:11])]
    encoder = load_encoder("stub")
    states_BSE, mask_BS = padded(token_rows(encoder, texts, 50), torch.device("cpu"))
    for row, text in enumerate(texts):
        alone_1SE, _ = encoder.token_states([text], max_tokens=50)  # ty: ignore[unresolved-attribute]
        torch.testing.assert_close(states_BSE[row, mask_BS[row]], alone_1SE[0])


def test_kept_states_are_those_computed_and_are_not_computed_again(pairs: list[Pair], tmp_path: Path) -> None:
    encoder, inputs, targets = load_encoder("stub"), [pair.text for pair in pairs], [pair.targets[0] for pair in pairs]
    KeptStates(tmp_path, encoder, inputs, targets, 50, quiet=True)
    kept = KeptStates(tmp_path, None, inputs, targets, 50, quiet=True)  # without an encoder
    some_B = np.array([7, 0, 19])
    for own, expected in zip(kept.states(some_B), token_rows(encoder, [inputs[n] for n in some_B], 50), strict=True):
        torch.testing.assert_close(own.float(), expected, rtol=1e-3, atol=1e-3)
    vectors_BE = torch.from_numpy(encoder.encode([targets[n] for n in some_B]).vectors).float()
    torch.testing.assert_close(kept.vectors(some_B), torch.nn.functional.normalize(vectors_BE, dim=-1))
    file = min(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{file.name} is damaged"):
        KeptStates(tmp_path, encoder, inputs, targets, 50, quiet=True)


def test_steps_that_aim_do_not_run_the_lm(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thoughts come nearer to the targets' vectors; what only the LM's loss could train stays as it was."""
    wanted = settings(steps=40, aim_steps=40, soft_words=True)
    task = task_of(pairs, wanted)
    with torch.no_grad():
        before = task.evaluate()["cosine_thought_target"]
    monkeypatch.setattr(task, "evaluate", dict)
    monkeypatch.setattr(task.lm, "final_hidden", None)
    start = {name: value.clone() for name, value in task.model.named_parameters()}
    Trainer(task, wanted, tmp_path / "run", quiet=True).train()
    monkeypatch.undo()
    with torch.no_grad():
        assert task.evaluate()["cosine_thought_target"] > before + 0.1
    changed = {name for name, value in task.model.named_parameters() if not torch.equal(value, start[name])}
    assert {"pooling.score.weight", "compress.mlp.3.weight", "middle.blocks.0.3.weight", "expansion.word_head.weight"} <= changed
    assert not {name for name in changed if "lexical" in name or "prefix_head" in name or "word_scale" in name}


def test_the_soft_words_loss_counts_by_its_weight(pairs: list[Pair]) -> None:
    wanted = settings(soft_words=True)
    parts = []
    for weight in (1.0, 0.25, 0.0):
        wanted.word_weight = weight
        task = task_of(pairs, wanted)
        loss, found = task.loss(task.batch(0))
        assert loss.item() == pytest.approx(sum(map(float, found.values())))
        parts.append(found)
    assert float(parts[1]["word_loss"]) == pytest.approx(0.25 * float(parts[0]["word_loss"])) and "word_loss" not in parts[2]


@pytest.mark.parametrize("soft_words", [False, True])
def test_the_loss_falls(pairs: list[Pair], soft_words: bool, tmp_path: Path) -> None:
    wanted = settings(steps=30, aim=0.5, soft_words=soft_words)
    task = task_of(pairs, wanted)
    with torch.no_grad():
        before = dict(task.evaluate())
    after = Trainer(task, wanted, tmp_path / "run", quiet=True).train()["evaluation"]
    assert after["loss"] < 0.85 * before["loss"]
    card = (tmp_path / "run/final/README.md").read_text()
    assert f"| {after['loss']:.3f} |" in card and "another input's idea" in card


@pytest.mark.parametrize("aim_steps", [0, 3, 5])
def test_resumed_equals_unbroken_bitwise(pairs: list[Pair], aim_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the fourth step: before, between and within the steps that aim."""
    wanted = settings(aim_steps=aim_steps, keep=aim_steps > 0, soft_words=aim_steps > 0)
    Trainer(task_of(pairs, wanted), wanted, tmp_path / "unbroken", quiet=True).train()
    task = task_of(pairs, wanted)
    loss, calls = task.loss, iter(range(100))

    def stops(batch: object) -> object:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return loss(batch)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(task, "loss", stops)
    with pytest.raises(KeyboardInterrupt):
        Trainer(task, wanted, tmp_path / "broken", quiet=True).train()
    Trainer(task_of(pairs, wanted), wanted, tmp_path / "broken", resume="must", quiet=True).train()
    files = [tmp_path / name / "final" / "model.safetensors" for name in ("unbroken", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(UserError, match="data"):
        Trainer(task_of(pairs[:-1], wanted), wanted, tmp_path / "broken", quiet=True).train()


def test_an_adapter_to_start_from_speaks_from_the_first_step(pairs: list[Pair]) -> None:
    wanted = settings()
    trained = task_of(pairs, wanted).model.expansion
    torch.nn.init.normal_(trained.prefix_head.weight)
    task = task_of(pairs, wanted, start_from=trained)
    z_BD = torch.randn(2, 64)
    expected = trained.prefix(trained.trunk(z_BD), task.lm).prefix_BPH
    torch.testing.assert_close(task.model.expansion.prefix(task.model.expansion.trunk(z_BD), task.lm).prefix_BPH, expected)
    other = PrefixAdapter(AdapterSettings(prefix_length=5, hidden=32), trained.home)
    with pytest.raises(UserError, match="write both into the config"):
        task_of(pairs, wanted, start_from=other)


def test_what_cannot_be_trained_is_refused(pairs: list[Pair]) -> None:
    with pytest.raises(UserError, match="one document"):
        task_of([Pair("same", pair.text, pair.targets) for pair in pairs], settings())
    for wanted in (settings(aim=1.0, latent=32), settings(aim_steps=2, latent=32)):
        with pytest.raises(UserError, match=r"latent_dim 64, the encoder's width"):
            task_of(pairs, wanted)
    with pytest.raises(UserError, match=r"aim_steps 7 must lie in 0..steps 6"):
        settings(aim_steps=7)
    with pytest.raises(UserError, match="nothing to train"):
        ReasonSettings(aim_steps=2, stack=StackSettings(pooling="mean", compress_hidden=0, middle=MiddleSettings(kind="identity")))


@pytest.mark.parametrize("lora", [0, 2])
def test_modernbert_and_gpt2_train_and_speak(pairs: list[Pair], modernbert: Path, gpt2: Path, lora: int, tmp_path: Path) -> None:
    """The classes of the default names, random and tiny; with LoRA layers in GPT-2 the run brings them back."""
    wanted = settings(steps=4, latent=16, lora=lora)
    encoder, lm = load_encoder(str(modernbert), device="cpu"), FrozenLM.load(str(gpt2))
    assert lm.model.config.model_type == "gpt2" and encoder.model.path == modernbert  # ty: ignore[unresolved-attribute]
    task = ReasonTask(pairs, encoder, lm, wanted, seed=0)
    before = {name: value.clone() for name, value in lm.model.state_dict().items() if "lora" not in name}
    result = Trainer(task, wanted, tmp_path / "run", quiet=True).train()
    assert np.isfinite(result["evaluation"]["loss"])
    for name, value in lm.model.state_dict().items():
        assert "lora" in name or torch.equal(value, before[name]), f"{name} of a frozen model changed"
    stack = Stack.load(tmp_path / "run", device="cpu", encoder=str(modernbert), lm=str(gpt2), max_new_tokens=12)
    ideas_ND = stack.ideas([pair.text for pair in task.held_out])
    nats_N, tokens_N = stack.nats(ideas_ND, [pair.targets[0] for pair in task.held_out])
    assert nats_N.sum() / tokens_N.sum() == pytest.approx(result["evaluation"]["loss"], rel=0.02)
    assert stack.write(ideas_ND[:2]) == stack.write(ideas_ND[:2]) and ideas_ND.shape[1] == 16
    with pytest.raises(UserError, match="not stub"):
        Stack.load(tmp_path / "run", device="cpu", encoder=str(modernbert), lm="stub")
    with torch.no_grad():  # the control is the LM itself, whatever its LoRA layers have become
        control = stack.read("Some text.", ["A target."], write=False)
        for name, value in stack.lm.model.named_parameters():
            if "lora" in name:
                value.add_(1.0)
    assert stack.read("Some text.", ["A target."], write=False) == control


def test_the_lm_reads_a_text_itself(pairs: list[Pair], tmp_path: Path) -> None:
    """Its nats are the model's own loss of prompt and target."""
    wanted = settings(steps=2)
    Trainer(task_of(pairs, wanted), wanted, tmp_path / "run", quiet=True).train()
    stack = Stack.load(tmp_path / "run", device="cpu", max_new_tokens=5)
    _, ((nats,), (count,)) = stack.read("Some text.", ["A target."])
    before, after = list(b"Some text.\n\nSummary:"), [*b" A target.", stack.lm.tokens.end_id]
    logits_TV = stack.lm.model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    assert count == len(after) and nats == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits_TV, torch.tensor(after))) * count, rel=1e-4
    )


def test_the_residual_stream_of_gpt2_is_that_of_transformers(gpt2: Path) -> None:
    lm = FrozenLM.load(str(gpt2), dtype=torch.float32)
    inputs = torch.randn(2, 5, lm.width, generator=torch.Generator().manual_seed(0))
    reference = lm.model(inputs_embeds=inputs, output_hidden_states=True).hidden_states
    for layer in range(1, lm.n_layers):  # behind the last one transformers gives the normed states
        torch.testing.assert_close(lm.hidden(inputs, layer), reference[layer])
    assert lm.n_layers == 2
