"""The learned code: any first dims are a code, padding counts for nothing, runs resume bit for bit, and wrong partners are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lsm.config import load_settings, settings_from, settings_kind_of, to_dict
from lsm.corpus.reader import Corpus
from lsm.decode.learned_code import BOUND, LearnedCode, TokenStates, _ContextPool
from lsm.decode.learned_code_codec import LearnedCodec, from_int8, to_int8
from lsm.decode.learned_code_settings import CodeSettings, ContrastSettings, LearnedCodeSettings
from lsm.decode.learned_code_training import LearnedCodeTask, StartAdapter
from lsm.decode.settings import DecoderSettings
from lsm.decode.training import PrefixTask
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.training.loop import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
WIDTH = 24
TEXTS = ["The fox sleeps at home.", "The wolf runs by the sea.", "The crow sings in the wood.", "A hare."]


def states_of(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """A tiny random encoder: each letter's fixed vector and a trace of the one before it; what stands behind the text is not a number."""
    table = torch.randn(256, WIDTH, generator=torch.Generator().manual_seed(3))
    rows = [table[list(text.encode())] for text in texts]
    rows = [row + 0.5 * row.roll(1, 0) for row in rows]
    states_BTD = torch.full((len(texts), max(map(len, rows)), WIDTH), torch.nan)
    for b, row in enumerate(rows):
        states_BTD[b, : len(row)] = row
    return states_BTD, ~states_BTD[..., 0].isnan()


def tiny(**changes: object) -> LearnedCodeSettings:
    settings = to_dict(load_settings(LearnedCodeSettings, CONFIGS / "learned-code-tiny.yaml"))
    settings["code"]["context_queries"] = 2
    return settings_from(LearnedCodeSettings, settings | changes, origin="test")


def task_of(corpus: Corpus, settings: LearnedCodeSettings) -> LearnedCodeTask:
    return LearnedCodeTask(corpus, FrozenLM.load("stub"), settings, seed=0, states_of=states_of, state_width=WIDTH)


@pytest.fixture(scope="module")
def trained(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A short run's `final` and its evaluation."""
    out = tmp_path_factory.mktemp("learned") / "run"
    settings = tiny(steps=120, token_stage={"steps": 80, "batch_sentences": 64, "negatives": 64}, eval_every=120, save_every=120)
    return out / "final", Trainer(task_of(small_corpus, settings), settings, out, quiet=True).train()["evaluation"]


@pytest.fixture(scope="module")
def codec(trained: tuple[Path, dict[str, float]]) -> LearnedCodec:
    return LearnedCodec(FrozenLM.load("stub"), LearnedCode.from_pretrained(trained[0]), states_of)


def test_losses_fall_and_the_code_is_read(small_corpus: Corpus, trained: tuple[Path, dict[str, float]]) -> None:
    task = task_of(small_corpus, tiny())
    with torch.no_grad():
        before = task.evaluate()
    after = trained[1]
    assert after["loss"] < 0.5 * before["loss"]
    assert after["loss_16"] < after["loss_8"] < after["loss_0"]
    assert after["loss"] < min(after["loss_shuffled_code"], after["loss_zero_code"])


def test_batches_come_from_their_index_alone(small_corpus: Corpus) -> None:
    one, other = task_of(small_corpus, tiny()), task_of(small_corpus, tiny())
    for index in (3, 0, 20):
        a, b = one.batch(index), other.batch(index)
        assert torch.equal(a.ids_BT, b.ids_BT) and torch.equal(a.z_BD, b.z_BD) and a.with_lm == b.with_lm == (index >= 16)


def test_any_first_dims_are_a_code(codec: LearnedCodec) -> None:
    codes_BK = codec.encode(TEXTS).codes_BK
    assert codes_BK.shape == (4, 16) and np.abs(codes_BK).max() <= BOUND
    for k in (0, 5, 8):
        behind = codes_BK.copy()
        behind[:, k:] = 3.0
        keep_BK = codec.code.keep(torch.full((4,), k))
        written_BTK = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
        asked = [codec.code.query(torch.from_numpy(codes), written_BTK, keep_BK) for codes in (codes_BK, behind)]
        assert torch.equal(*asked), "what stands behind the first k dims is not looked at"
        assert codec.decode(codes_BK[:, :k]).texts == codec.decode(codes_BK.astype(np.float16)[:, :k].astype(np.float32)).texts


def test_batched_is_one_by_one(codec: LearnedCodec) -> None:
    together = codec.encode(TEXTS)
    alone = np.concatenate([codec.encode([text]).codes_BK for text in TEXTS])
    np.testing.assert_allclose(together.codes_BK, alone, atol=1e-5)
    z_BD = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    for beam in (1, 3):
        written = codec.decode(together.codes_BK, z_BD, beam=beam)
        one_by_one = [codec.decode(together.codes_BK[b : b + 1], z_BD[b : b + 1], beam=beam) for b in range(4)]
        assert written.texts == [one.texts[0] for one in one_by_one]
        np.testing.assert_allclose(written.log_probability_B, [one.log_probability_B[0] for one in one_by_one], atol=1e-3)
        assert not written.certified_B.any()


def test_padding_is_masked_in_pooling() -> None:
    pool = _ContextPool(WIDTH, 2, 8)
    torch.nn.init.normal_(pool.out.weight)
    together_BK = pool(TokenStates(*states_of(TEXTS)))
    for b, text in enumerate(TEXTS):
        torch.testing.assert_close(pool(TokenStates(*states_of([text])))[0], together_BK[b])


def test_token_by_token_is_the_whole_sentence(codec: LearnedCodec) -> None:
    """The reader asks the same whether it goes through a sentence at once (training) or takes one token after the other off the code."""
    code, lm = codec.code, codec.lm
    codes_BK = torch.from_numpy(codec.encode(TEXTS).codes_BK)
    keep_BK = torch.ones_like(codes_BK)
    ids_BT, mask_BT = lm.tokenize(TEXTS, max_tokens=32, add_end=True)
    query_BTC = code.query(codes_BK, code.written(code.bound(lm, ids_BT, mask_BT)), keep_BK)
    so_far_BK = torch.zeros_like(codes_BK)
    for t in range(int(mask_BT.sum(1).min())):
        torch.testing.assert_close(code.query(codes_BK, so_far_BK[:, None], keep_BK, start=t)[:, 0], query_BTC[:, t])
        so_far_BK = so_far_BK + code.in_code_unit(code.bound(lm, ids_BT[:, t : t + 1], mask_BT[:, t : t + 1], start=t))[:, 0]


def test_a_wider_beam_is_never_less_probable(codec: LearnedCodec) -> None:
    codes_BK = codec.encode(TEXTS).codes_BK[:, :8]
    assert (codec.decode(codes_BK, beam=8).log_probability_B >= codec.decode(codes_BK, beam=1).log_probability_B - 0.5).all()


def test_over_long_texts_are_counted_and_int8_is_near(codec: LearnedCodec) -> None:
    coded = codec.encode(["x" * 31, "x" * 32])
    assert coded.cut_B.tolist() == [False, True] and coded.n_tokens_B.tolist() == [32, 33]
    stored = from_int8(to_int8(coded.codes_BK))
    assert np.abs(stored - coded.codes_BK).max() <= BOUND / 127 / 2 + 1e-6


def test_saved_and_loaded_is_the_same(codec: LearnedCodec, tmp_path: Path) -> None:
    codec.code.save_pretrained(tmp_path, card="card", dtype=torch.float32)
    again = LearnedCodec(FrozenLM.load("stub"), LearnedCode.from_pretrained(tmp_path), states_of)
    codes_BK = codec.encode(TEXTS).codes_BK
    np.testing.assert_array_equal(again.encode(TEXTS).codes_BK, codes_BK)
    assert again.decode(codes_BK).texts == codec.decode(codes_BK).texts
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(UserError, match=f"learned code {tmp_path} is damaged"):
        LearnedCode.from_pretrained(tmp_path)
    codec.code.save_pretrained(tmp_path, card="card")
    (tmp_path / "config.json").write_text('{"format": "lsm learned code"}')
    with pytest.raises(UserError, match=f"learned code {tmp_path} is damaged.*KeyError: 'home'"):
        LearnedCode.from_pretrained(tmp_path)


@pytest.mark.parametrize("stop_after", [12, 24])
def test_resumed_run_is_bit_identical(small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int) -> None:
    """Stopped at a checkpoint of either stage, also with gradients accumulated and LoRA layers in the LM."""
    settings = tiny(accum_steps=2, code=to_dict(tiny().code) | {"lora_rank": 2}, steps=30, keep_checkpoints=9)
    whole = tmp_path / "whole"
    Trainer(task_of(small_corpus, settings), settings, whole, quiet=True).train()

    class Stop(Exception):
        pass

    save = Trainer._save

    def stop(self: Trainer, step: int) -> None:
        save(self, step)
        if step == stop_after:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", stop)
        with pytest.raises(Stop):
            Trainer(task_of(small_corpus, settings), settings, tmp_path / "broken", quiet=True).train()
    Trainer(task_of(small_corpus, settings), settings, tmp_path / "broken", resume="must", quiet=True).train()
    for file in ("final/model.safetensors", "metrics.jsonl"):
        assert (whole / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()


def test_a_frozen_shipped_adapter_is_named_not_stored(small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny()
    decoder = DecoderSettings(
        lm="stub", steps=2, optimizer=settings.optimizer, adapter=settings.adapter,
        lexical_stage=settings_from(DecoderSettings, {}, origin="").lexical_stage.__class__(steps=1, batch_sentences=8),
    )  # fmt: skip
    shipped = tmp_path / "shipped"
    (shipped / "one").mkdir(parents=True)
    prefix = PrefixTask(small_corpus, FrozenLM.load("stub"), decoder, seed=0)
    prefix.adapter.save_pretrained(shipped / "one", card="card")
    for module in ("lsm.decode.shipped", "lsm.decode.learned_code_training", "lsm.decode.learned_code"):
        monkeypatch.setattr(f"{module}.SHIPPED", shipped)
    start = StartAdapter.load("one", encoder=small_corpus.encoder)
    settings.freeze_adapter = True
    task = LearnedCodeTask(
        small_corpus, FrozenLM.load("stub"), settings, seed=0, states_of=states_of, state_width=WIDTH, start_from=start
    )  # fmt: skip
    Trainer(task, settings, tmp_path / "run", quiet=True).train()
    loaded = LearnedCode.from_pretrained(tmp_path / "run")
    assert torch.equal(loaded.adapter.inlet.weight, start.adapter.inlet.weight)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/config.json").write_text("{}")  # a run of the same name in the current folder
    LearnedCode.from_pretrained(tmp_path / "run")
    prefix.adapter.inlet.weight.data += 1
    prefix.adapter.save_pretrained(shipped / "one", card="card")
    with pytest.raises(UserError, match="was trained with adapter one"):
        LearnedCode.from_pretrained(tmp_path / "run")
    other = LearnedCodeTask(
        small_corpus, FrozenLM.load("stub"), settings, seed=0, states_of=states_of, state_width=WIDTH,
        start_from=StartAdapter.load(str(shipped / "one"), encoder=small_corpus.encoder),
    )  # fmt: skip
    with pytest.raises(UserError, match="started_from"):
        Trainer(other, settings, tmp_path / "run", quiet=True)


def test_wrong_partners_are_refused(small_corpus: Corpus, trained: tuple[Path, dict[str, float]], codec: LearnedCodec) -> None:
    lm = FrozenLM.load("stub")
    lm.sha256 = "another"
    with pytest.raises(UserError, match="speaks through LM"):
        LearnedCodec(lm, codec.code, states_of)
    with pytest.raises(UserError, match="token states"):
        LearnedCodec(FrozenLM.load("stub"), codec.code).encode(TEXTS)
    with pytest.raises(UserError, match="context_queries to 0"):
        LearnedCodeTask(small_corpus, FrozenLM.load("stub"), tiny(), seed=0)
    with pytest.raises(UserError, match="nothing is no folder"):
        LearnedCode.from_pretrained(trained[0] / "nothing")
    with pytest.raises(UserError, match="2 learned codes and 1 vectors"):
        codec.decode(np.zeros((2, 16), np.float32), np.zeros((1, 64), np.float32))
    with pytest.raises(UserError, match="learned code 1 holds NaN"):
        codec.decode(np.array([[0.0] * 16, [np.nan] * 16], np.float32))
    with pytest.raises(UserError, match=r"reads \[n, k\] with k up to 16"):
        codec.decode(np.zeros((2, 17), np.float32))
    with pytest.raises(UserError, match="NaN"):
        codec.decode(np.full((2, 8), np.nan, np.float32))
    with pytest.raises(UserError, match=r"shape \[4, 10\]"):
        codec.decode(np.zeros((4, 8), np.float32), np.zeros((4, 10), np.float32))


def test_configs_parse_by_their_kind_and_faults_are_listed(tmp_path: Path) -> None:
    kinds = DecoderSettings | LearnedCodeSettings
    for path in sorted(CONFIGS.glob("learned-code*.yaml")):
        assert settings_kind_of(kinds, path) is LearnedCodeSettings
        load_settings(LearnedCodeSettings, path)
    assert settings_kind_of(kinds, CONFIGS / "decoder-tiny.yaml") is DecoderSettings is settings_kind_of(kinds, None)
    (tmp_path / "odd.yaml").write_text("kind: unheard-of\n")
    with pytest.raises(UserError, match="'unheard-of' is not one"):
        settings_kind_of(kinds, tmp_path / "odd.yaml")
    assert tiny(accum_steps=3).accumulate == 3
    with pytest.raises(UserError, match="called accum_steps"):
        tiny(accumulate=3)
    with pytest.raises(UserError, match=r"max_tokens 1 .*; code\.lengths \[8, 4\]"):
        CodeSettings(max_tokens=1, lengths=(8, 4))
    with pytest.raises(UserError, match="final_tau"):
        ContrastSettings(final_tau=0.5)
