"""Decoder training: batches come from their index alone, losses fall, adapters come back as saved, decoders refuse the unreadable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.config import load_settings
from lsm.corpus.reader import Corpus
from lsm.decode.adapter import PrefixAdapter, spoken_before
from lsm.decode.decoders import PrefixDecoder, RetrievalDecoder
from lsm.decode.load import DecoderSource
from lsm.decode.phrase_store import PhraseStore
from lsm.decode.reading import LengthBatches, TokenizedSentences
from lsm.decode.settings import AdapterSettings, DecoderSettings, LexicalStageSettings, ReadingSettings
from lsm.decode.training import PrefixTask, add_noise
from lsm.decode.vectors import check_vectors
from lsm.errors import UserError
from lsm.lm.frozen import FrozenLM
from lsm.training.loop import Trainer
from lsm.training.metrics import read_metrics
from lsm.training.settings import OptimizerSettings


def settings(*, lora_rank: int = 0, soft_words: bool = True, steps: int = 60) -> DecoderSettings:
    return DecoderSettings(
        lm="stub",
        steps=steps,
        eval_every=steps,
        save_every=steps,
        threads=1,
        ema_decay=None,
        precision="float32",
        optimizer=OptimizerSettings(lr=1e-2, warmup_steps=3),
        adapter=AdapterSettings(prefix_length=2, hidden=32, lora_rank=lora_rank, soft_words=soft_words),
        reading=ReadingSettings(held_out_fraction=0.2, batch_positions=600, evaluation_sentences=16),
        lexical_stage=LexicalStageSettings(steps=20, batch_sentences=32),
    )


def task_of(corpus: Corpus, wanted: DecoderSettings) -> PrefixTask:
    return PrefixTask(corpus, FrozenLM.load("stub"), wanted, seed=0)


@pytest.fixture(scope="module")
def trained(small_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrefixTask, dict[str, float], dict[str, float]]:
    """A run folder, its task, and the held-out scores before and after."""
    task = task_of(small_corpus, settings())
    with torch.no_grad():
        before = dict(task.evaluate())
    out = tmp_path_factory.mktemp("run") / "run"
    result = Trainer(task, settings(), out, quiet=True).train()
    return out / "final", task, before, result["evaluation"]


def test_held_out_loss_falls_in_both_stages(trained: tuple[Path, PrefixTask, dict[str, float], dict[str, float]]) -> None:
    folder, _, before, after = trained
    assert after["loss"] < 0.7 * before["loss"] and after["loss"] < after["loss_shuffled_vector"]
    rows = [row for row in read_metrics(folder.parent) if "lexical_loss" in row]
    assert len(rows) == 20
    for name in ("lexical_loss", "word_loss"):
        assert sum(row[name] for row in rows[-5:]) < 0.95 * sum(row[name] for row in rows[:5]), name


def test_batches_depend_on_their_index_alone(small_corpus: Corpus) -> None:
    task, again = task_of(small_corpus, settings()), task_of(small_corpus, settings())
    for index in (0, 25, 7, 40):
        one, other = task.batch(index), again.batch(index)
        assert torch.equal(one.z_BD, other.z_BD) and torch.equal(one.ids_BT, other.ids_BT)
    assert task.batch(0).position_B is not None and task.batch(25).position_B is None


def test_length_batches_keep_the_budget_and_show_every_sentence_once() -> None:
    lengths_N = np.random.default_rng(0).integers(2, 50, 500)
    batches = LengthBatches(lengths_N, extra_positions=4, budget_positions=200, seed=1)
    for epoch in range(2):
        numbers = [batches.numbers(epoch * batches.n_batches + i) for i in range(batches.n_batches)]
        assert sorted(np.concatenate(numbers)) == list(range(500))
        assert all(len(n) * (lengths_N[n].max() + 4) <= 200 for n in numbers)
    assert np.mean([lengths_N[n].max() - lengths_N[n].min() for n in numbers]) < 2


def test_saved_adapter_speaks_as_before(small_corpus: Corpus, trained: tuple[Path, PrefixTask, dict[str, float], dict[str, float]]) -> None:
    folder, task, _, _ = trained
    source = DecoderSource(encoder=small_corpus.encoder, adapter=str(folder.parent))
    (decoder,) = source.load(["prefix"])
    z_BD = np.asarray(small_corpus.vectors(0), dtype=np.float32)
    own = PrefixDecoder(task.lm, task.module)
    loaded = PrefixAdapter.from_pretrained(folder)
    torch.testing.assert_close(loaded.trunk(torch.from_numpy(z_BD)), task.module.trunk(torch.from_numpy(z_BD)), rtol=1e-2, atol=1e-2)
    assert decoder.decode(z_BD) == PrefixDecoder(FrozenLM.load("stub"), loaded).decode(z_BD * 7.0)
    assert len(own.decode(z_BD)) == 12
    assert "held out, nats per token" in (folder / "README.md").read_text() and "right vector" in (folder / "README.md").read_text()


def test_lora_trains_and_is_part_of_the_adapter(small_corpus: Corpus, tmp_path: Path) -> None:
    wanted = settings(lora_rank=2, soft_words=False, steps=24)
    task = task_of(small_corpus, wanted)
    Trainer(task, wanted, tmp_path / "run", quiet=True).train()
    loaded = PrefixAdapter.from_pretrained(tmp_path / "run" / "final")
    assert any(value.abs().sum() > 0 for name, value in loaded.lora.items() if "lora_B" in name)
    z_BD = np.asarray(small_corpus.vectors(0), dtype=np.float32)
    lm = FrozenLM.load("stub")
    assert len(PrefixDecoder(lm, loaded).decode(z_BD)) == len(z_BD)


def test_vectors_that_cannot_be_read_are_refused(small_corpus: Corpus) -> None:
    good_BD = np.asarray(small_corpus.vectors(0), dtype=np.float32)
    for spoil, message in ((np.nan, "NaN"), (0.0, "zeros only")):
        bad_BD = good_BD.copy()
        bad_BD[4] = spoil
        with pytest.raises(UserError, match=f"vector 4 holds {message}"):
            check_vectors(bad_BD, 64, small_corpus.encoder, refuse_zeros=True)
    with pytest.raises(UserError, match=r"shape \[12, 10\]"):
        RetrievalDecoder(PhraseStore.from_corpus(small_corpus)).decode(good_BD[:, :10])


def test_wrong_partners_are_refused(small_corpus: Corpus, trained: tuple[Path, PrefixTask, dict[str, float], dict[str, float]]) -> None:
    folder = str(trained[0])
    with pytest.raises(UserError, match="needed"):
        DecoderSource(encoder=small_corpus.encoder | {"sha256": "other"}, adapter=folder).load(["prefix"])
    with pytest.raises(UserError, match="neither a folder"):
        DecoderSource(encoder=small_corpus.encoder, adapter="unheard-of").load(["prefix"])
    with pytest.raises(UserError, match="choose from"):
        DecoderSource(encoder=small_corpus.encoder).load(["guess"])
    with pytest.raises(UserError, match="--index FILE"):
        DecoderSource(encoder=small_corpus.encoder).load(["retrieval"])
    with pytest.raises(UserError, match="--corrector RUN/final"):
        DecoderSource(encoder=small_corpus.encoder).load(["corrector"])
    lm = FrozenLM.load("stub")
    lm.sha256 = "another"
    with pytest.raises(UserError, match="adapter speaks through LM"):
        PrefixDecoder(lm, PrefixAdapter.from_pretrained(trained[0]))


def test_one_document_is_refused_whichever_side_it_falls_on(small_corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"has one document.*encode at least two"):
        TokenizedSentences(small_corpus, [], FrozenLM.load("stub").tokens, max_tokens=9)


def test_damaged_adapter_is_named(trained: tuple[Path, PrefixTask, dict[str, float], dict[str, float]], tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((trained[0] / file).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((trained[0] / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=f"adapter {tmp_path} is damaged"):
        PrefixAdapter.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((trained[0] / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text('{"format": "lsm prefix adapter"}')
    with pytest.raises(UserError, match=rf"adapter {tmp_path} is damaged.*KeyError: 'adapter'"):
        PrefixAdapter.from_pretrained(tmp_path)


def test_noise_keeps_the_expected_length_and_its_share() -> None:
    z_BD = torch.nn.functional.normalize(torch.randn(2000, 64), dim=-1)
    noisy_BD = add_noise(z_BD, 0.5, torch.Generator().manual_seed(0))
    assert abs(float(noisy_BD.norm(dim=1).mean()) - 1) < 0.05
    cosine = torch.nn.functional.cosine_similarity(noisy_BD, z_BD)
    assert 0.4 < float(cosine.min()) < 0.8 and float(cosine.max()) > 0.99
    torch.testing.assert_close(add_noise(z_BD, 0.0, torch.Generator().manual_seed(0)), z_BD)


def test_spoken_before_is_the_sum_of_earlier_tokens() -> None:
    embedded_BTH = torch.randn(2, 5, 3)
    spoken_BTH = spoken_before(embedded_BTH)
    assert (spoken_BTH[:, 0] == 0).all()
    torch.testing.assert_close(spoken_BTH[:, 3], embedded_BTH[:, :3].sum(1))


def test_shipped_configs_parse_and_faults_are_listed_together() -> None:
    folder = Path(__file__).parents[2] / "configs"
    for path in sorted(folder.glob("decoder-*.yaml")):
        load_settings(DecoderSettings, path)
    assert len(list(folder.glob("decoder-*.yaml"))) >= 3
    with pytest.raises(UserError, match=r"prefix_length 0 .*; adapter\.hidden 1 "):
        AdapterSettings(prefix_length=0, hidden=1)
    with pytest.raises(UserError, match="leaves no step"):
        DecoderSettings(steps=100, optimizer=OptimizerSettings(warmup_steps=1), lexical_stage=LexicalStageSettings(steps=100))
