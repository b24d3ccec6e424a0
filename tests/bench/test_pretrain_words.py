"""`lsm pretrain` with a decoder in the loss (`words`, `text_lm`): it trains, goes on with the same decoder only, refuses what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lsm.corpus.reader import Corpus
from lsm.decode.load import DecoderSource
from lsm.decode.word_losses import PrefixLosses
from lsm.training.metrics import read_metrics

TINY = (
    "--steps", 3, "--eval-every", 3, "--save-every", 3, "--threads", 1, "--optimizer.warmup-steps", 1, "--model.context", 8,
    "--model.hidden", 16, "--model.layers", 1, "--model.heads", 2, "--data.batch-sentences", 32, "--data.held-out-fraction", 0.2,
)  # fmt: skip
WORDS = ("--objectives.words-sentences", 4, "--objectives.words-tokens", 12, "--objectives.words-context", 16)


@pytest.mark.parametrize("names", [("words",), ("text_lm",), ("words", "text_lm")], ids=" ".join)
def test_words_are_trained_through_the_adapter(
    run_cli: Callable, tmp_path: Path, training_corpus: Path, adapter_folder: Path, names: tuple[str, ...]
) -> None:
    asked = ("pretrain", "--corpus", training_corpus, "--out", tmp_path / "run", *TINY)
    weights = [option for name in names for option in (f"--objectives.{name.replace('_', '-')}", 1)]
    outcome = run_cli(*asked, *WORDS, *weights, "--adapter", adapter_folder)
    assert outcome.code == 0, outcome.stderr
    steps = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert len(steps) == 3 and all(row[name] > 0 for row in steps for name in names)
    assert all(steps[-1][f"gradient_{name}"] > 0 for name in names)  # the first step's head is zero
    assert all(read_metrics(tmp_path / "run")[-1]["evaluation"][name] > 0 for name in names)
    outcome = run_cli(*asked)  # the run was made with a decoder
    assert outcome.code == 2
    outcome = run_cli("pretrain", "--corpus", training_corpus, "--out", tmp_path / "other", *TINY, "--adapter", adapter_folder)
    assert outcome.code == 2 and "objectives.words" in outcome.stderr


def test_the_loss_of_a_cut_text_is_that_of_its_first_tokens(training_corpus: Path, adapter_folder: Path) -> None:
    corpus = Corpus.open(training_corpus)
    decoder = DecoderSource(encoder=corpus.encoder, adapter=str(adapter_folder)).prefix()

    def loss(max_tokens: int) -> torch.Tensor:
        return PrefixLosses(decoder, max_tokens=max_tokens).words(z_ND, texts)

    texts = corpus.text_at(np.arange(4))
    z_ND = torch.from_numpy(corpus.vector_at(np.arange(4)).astype(np.float32)).requires_grad_()
    ids = decoder.lm.tokens.encode(texts)
    whole = loss(200)
    for n, row in enumerate(ids):
        ids_1T = torch.tensor([[*row, decoder.lm.tokens.end_id]])
        prefix_1PH, _ = decoder.conditions(z_ND[n : n + 1].detach().numpy())
        alone = decoder.lm.prefix_loss(prefix_1PH.clone(), ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))
        assert float(whole[n].detach()) == pytest.approx(float(alone[0]), rel=1e-4)
    most = min(map(len, ids))
    cut = loss(most)
    shorter = [decoder.lm.tokens.decode(row[: most - 1]) for row in ids]
    assert [len(row) for row in decoder.lm.tokens.encode(shorter)] == [most - 1] * 4
    ids_BT, mask_BT = decoder.lm.tokenize(shorter)
    prefix_BPH, _ = decoder.conditions(z_ND.detach().numpy())
    torch.testing.assert_close(cut, decoder.lm.prefix_loss(prefix_BPH.clone(), ids_BT, mask_BT), rtol=1e-4, atol=1e-5)
    cut.sum().backward()
    assert z_ND.grad is not None and torch.isfinite(z_ND.grad).all()
