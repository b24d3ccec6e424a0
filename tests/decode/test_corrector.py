"""The corrector: hypotheses are written once, runs resume bit for bit, rows do not see each other, and no budget is overrun."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.config import load_settings, settings_from, settings_kind_of, to_dict
from lsm.corpus.reader import Corpus
from lsm.decode.adapter import AdapterHome, PrefixAdapter
from lsm.decode.correcting import CorrectorDecoder, Writer
from lsm.decode.corrector import Corrector
from lsm.decode.corrector_settings import CorrectorSettings
from lsm.decode.corrector_training import CorrectorTask
from lsm.decode.decoders import PrefixDecoder
from lsm.decode.learned_code_settings import LearnedCodeSettings
from lsm.decode.settings import DecoderSettings
from lsm.encode.encoder import load_encoder
from lsm.errors import UserError
from lsm.files import read_json
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import attach_lora, lora_off
from lsm.training.loop import PREPARED, Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
ENCODER = load_encoder("stub")
TEXTS = ["The fox sleeps at home.", "The wolf runs by the sea.", "The crow sings in the wood, and more.", "A hare."]


def encode(texts: Sequence[str]) -> np.ndarray:
    return ENCODER.encode(list(texts)).vectors


def tiny(**changes: object) -> CorrectorSettings:
    return settings_from(
        CorrectorSettings, to_dict(load_settings(CorrectorSettings, CONFIGS / "corrector-tiny.yaml")) | changes, origin="test"
    )


def adapter_for(corpus: Corpus) -> PrefixAdapter:
    lm = FrozenLM.load("stub")
    home = AdapterHome(
        encoder=corpus.encoder, lm=lm.fingerprint(), dim=corpus.dim, lm_width=lm.width,
        vocabulary=len(lm.head_VH), embedding_rms=lm.embedding_rms(),
    )  # fmt: skip
    torch.manual_seed(5)
    return PrefixAdapter(tiny().adapter, home)


def task_of(corpus: Corpus, settings: CorrectorSettings) -> CorrectorTask:
    return CorrectorTask(corpus, FrozenLM.load("stub"), settings, seed=0, start_from=adapter_for(corpus), encode=encode)


@pytest.fixture(scope="module")
def trained(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """A short run and its evaluations before and after."""
    out = tmp_path_factory.mktemp("corrector") / "run"
    settings = tiny(steps=150, eval_every=150, save_every=150)
    evaluations: list[dict[str, float]] = []
    task = task_of(small_corpus, settings)
    evaluate = task.evaluate
    task.evaluate = lambda: evaluations.append(evaluate()) or evaluations[-1]  # ty: ignore[invalid-assignment]
    Trainer(task, settings, out, quiet=True).train()
    return out, evaluations


@pytest.fixture(scope="module")
def writer(trained: tuple[Path, object]) -> Writer:
    return Writer.of(FrozenLM.load("stub"), Corrector.from_pretrained(trained[0]))


def test_loss_falls_and_the_vector_counts(trained: tuple[Path, list[dict[str, float]]]) -> None:
    before, after = trained[1]
    assert after["loss"] < 0.5 * before["loss"]
    assert after["loss"] < after["loss_shuffled_vector"]


def test_rows_do_not_see_each_other(writer: Writer) -> None:
    rng = np.random.default_rng(0)
    z_RD, own_RD = (rng.normal(size=(4, 64)).astype(np.float32) for _ in range(2))
    together = writer.write(z_RD, own_RD, TEXTS)
    assert together == [writer.write(z_RD[n : n + 1], own_RD[n : n + 1], [text])[0] for n, text in enumerate(TEXTS)]
    assert len(set(together)) > 1


def test_an_untrained_corrector_says_of_each_vector_what_the_adapter_says(small_corpus: Corpus) -> None:
    adapter = adapter_for(small_corpus)
    corrector = Corrector(adapter, lora_rank=0, hypothesis_tokens=32).eval()
    z_BD, own_BD = (torch.nn.functional.normalize(torch.randn(3, 64), dim=-1) for _ in range(2))
    trunks_B3F = corrector.trunks(z_BD, own_BD)
    for part, vectors_BD in enumerate((z_BD, own_BD, z_BD - own_BD)):
        torch.testing.assert_close(trunks_B3F[:, part], adapter.trunk(vectors_BD))


@pytest.mark.parametrize("limit", [1, 3, 10, 40])
def test_the_budget_holds_and_the_best_is_kept(small_corpus: Corpus, writer: Writer, limit: int) -> None:
    first = PrefixDecoder(FrozenLM.load("stub"), adapter_for(small_corpus))
    calls: list[int] = []

    def counted(texts: Sequence[str]) -> np.ndarray:
        calls.append(len(texts))
        return encode(texts)

    decoder = CorrectorDecoder(writer, first, counted, encoder_calls=limit, beam=2)
    targets = encode(TEXTS)
    texts = decoder.decode(targets)
    assert sum(calls) <= limit * len(TEXTS) and decoder.encoder_calls_per_sentence <= limit
    for n, trail in enumerate(decoder.trails):
        reached = [float(encode([text])[0] @ targets[n]) for _, text in trail[1:]]
        assert reached == sorted(reached) and trail[-1][1] == texts[n] and trail[-1][0] <= limit


def test_samples_do_not_see_each_other_either(small_corpus: Corpus, writer: Writer) -> None:
    first = PrefixDecoder(FrozenLM.load("stub"), adapter_for(small_corpus))
    targets = encode(TEXTS)
    assert first.candidates(targets, 4) == [first.candidates(targets[n : n + 1], 4)[0] for n in range(len(TEXTS))]
    assert len(set(first.candidates(targets, 4)[0])) > 1
    decoder = CorrectorDecoder(writer, first, encode, encoder_calls=12, beam=2)
    assert decoder.decode(targets) == [decoder.decode(targets[n : n + 1])[0] for n in range(len(TEXTS))]


def test_where_nothing_was_written_first_the_corrector_writes(small_corpus: Corpus, writer: Writer) -> None:
    first = PrefixDecoder(FrozenLM.load("stub"), adapter_for(small_corpus))
    first.candidates = lambda z_BD, k, *, seed=0: [[""] for _ in z_BD]  # ty: ignore[invalid-assignment]
    decoder = CorrectorDecoder(writer, first, encode, encoder_calls=5, beam=1)
    assert all(decoder.decode(encode(TEXTS)))
    assert all(trail[0] == (0, "") and len(trail) > 1 for trail in decoder.trails)


def test_the_command_of_its_card_runs(small_corpus: Corpus, trained: tuple[Path, object], tmp_path: Path, run_cli: Callable) -> None:
    card = (trained[0] / "final/README.md").read_text()
    (command,) = [line.strip() for line in card.splitlines() if line.startswith("    lsm ")]
    adapter_for(small_corpus).save_pretrained(tmp_path, card="", dtype=torch.float32)
    words = shlex.split(command.removeprefix("lsm ").replace("THIS_FOLDER", str(trained[0] / "final")))
    outcome = run_cli(*words, "--encoder", "stub", "--lm", "stub", "--adapter", tmp_path)
    assert outcome.code == 0 and outcome.stdout.strip() and "another adapter" not in outcome.stderr
    other = adapter_for(small_corpus)
    other.inlet.weight.data += 1
    other.save_pretrained(tmp_path, card="", dtype=torch.float32)
    assert "another adapter" in run_cli(*words, "--encoder", "stub", "--lm", "stub", "--adapter", tmp_path).stderr


def test_damaged_folders_are_named(trained: tuple[Path, object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is no folder; name one that lsm train-decoder"):
        Corrector.from_pretrained(tmp_path / "nothing")
    for config in ({"format": "lsm corrector"}, read_json(trained[0] / "final/config.json") | {"corrector": {"color": 3}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=f"corrector {tmp_path} is damaged"):
            Corrector.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="hypothesis_tokens 20 must be a multiple of 8"):
        tiny(hypothesis_tokens=20)


def test_hypotheses_are_written_once(small_corpus: Corpus, trained: tuple[Path, object]) -> None:
    folder, settings = trained[0] / PREPARED, tiny()
    files = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert len(files) > 2
    task = task_of(small_corpus, settings)
    task._hypothesizer.decode = None  # ty: ignore[invalid-assignment]
    task.prepare(folder, quiet=True)
    damaged = max(files)
    damaged.write_bytes(files[damaged][:-20])
    with pytest.raises(TypeError):
        task.prepare(folder, quiet=True)
    again = task_of(small_corpus, settings)
    for value in again.corrector.lora.values():
        torch.nn.init.normal_(value)
    again.prepare(folder, quiet=True)
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == files, "LoRA layers have no part in hypotheses"


def test_resumed_run_is_bit_identical(small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny(steps=18, save_every=6, eval_every=9, keep_checkpoints=9)
    Trainer(task_of(small_corpus, settings), settings, tmp_path / "whole", quiet=True).train()

    class Stop(Exception):
        pass

    save = Trainer._save

    def stop(self: Trainer, step: int) -> None:
        save(self, step)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", stop)
        with pytest.raises(Stop):
            Trainer(task_of(small_corpus, settings), settings, tmp_path / "broken", quiet=True).train()
    Trainer(task_of(small_corpus, settings), settings, tmp_path / "broken", resume="must", quiet=True).train()
    for file in ("final/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()


def test_lora_off_is_the_plain_lm() -> None:
    plain, carrying = FrozenLM.load("stub"), FrozenLM.load("stub")
    layers = attach_lora(carrying, 2)
    for value in layers.values():
        torch.nn.init.normal_(value)
    ids_BT, _ = plain.tokenize(["The fox."])
    with torch.no_grad():
        states = [lm.final_hidden(lm.embed(ids_BT)) for lm in (plain, carrying)]
        with lora_off(carrying):
            assert torch.equal(carrying.final_hidden(carrying.embed(ids_BT)), states[0])
        assert torch.equal(carrying.final_hidden(carrying.embed(ids_BT)), states[1]) and not torch.equal(*states)
    assert all(value.requires_grad for value in layers.values())


def test_wrong_partners_are_refused(small_corpus: Corpus, trained: tuple[Path, object], tmp_path: Path) -> None:
    lm = FrozenLM.load("stub")
    lm.sha256 = "another"
    with pytest.raises(UserError, match="the corrector speaks through LM"):
        Writer.of(lm, Corrector.from_pretrained(trained[0]))
    with pytest.raises(UserError, match="holds no finished corrector"):
        Corrector.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="another shape"):
        task_of(small_corpus, tiny(adapter={"prefix_length": 3, "hidden": 32, "blocks": 1}))
    with pytest.raises(UserError, match="lora_rank -1"):
        tiny(lora_rank=-1)


def test_configs_parse_by_their_kind() -> None:
    kinds = DecoderSettings | LearnedCodeSettings | CorrectorSettings
    for path in sorted(CONFIGS.glob("corrector*.yaml")):
        assert settings_kind_of(kinds, path) is CorrectorSettings
        load_settings(CorrectorSettings, path)
