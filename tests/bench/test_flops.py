"""Operation counts against torch's own counter, which counts every pair of positions, and against known values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lsm.bench import flops
from lsm.bench.token_transformer import TokenTransformer
from lsm.encode.encoder import load_encoder
from lsm.latent.settings import ModelSettings
from lsm.latent.transformer import LatentConfig, LatentTransformer
from lsm.lm.frozen import FrozenLM

N = 24


@pytest.fixture(autouse=True)
def plain_attention() -> Iterator[None]:
    """As matrix products, which the counter knows; it passes over the fused kernel of CPUs."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def settings(anchor: str = "attention") -> ModelSettings:
    return ModelSettings(hidden=32, layers=2, heads=2, dropout=0.0, anchor=anchor)


def test_visible_pairs() -> None:
    assert flops.visible_pairs(4) == 10
    assert flops.visible_pairs(4, 1) == 4
    assert flops.visible_pairs(5, 3) == 1 + 2 + 3 + 3 + 3
    assert flops.visible_pairs(3, 9) == flops.visible_pairs(3)


def test_token_model_as_torch_counts_it() -> None:
    model, ids_BT = TokenTransformer(settings(), 100), torch.randint(100, (1, N))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.read(ids_BT)
    unseen = N * N - flops.visible_pairs(N)
    assert flops.token_flops(model, N, training=False, window=None) + 2 * 4 * 32 * unseen == counter.get_total_flops()


def test_training_step_of_the_token_model() -> None:
    model = TokenTransformer(settings(), 100)
    forward, step = (flops.token_flops(model, N, training=training, window=None) for training in (False, True))
    assert step == 3 * (forward - 2 * 32 * 100) + 6 * (N - 1) * 32 * 100


@pytest.mark.parametrize("anchor", ["attention", "last", "none"])
def test_latent_model_as_torch_counts_it(anchor: str) -> None:
    model = LatentTransformer(LatentConfig(dim=48, model=settings(anchor)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, N, 48))
    unseen = N * N - flops.visible_pairs(N)
    assert flops.latent_flops(model, N, training=False) + flops.pair_flops(model) * unseen == counter.get_total_flops()


def test_a_table_of_vectors_multiplies_nothing_and_an_lm_as_much_as_torch_counts() -> None:
    assert flops.encoder_flops(load_encoder("stub"), [3, 4]) == 0
    lm = FrozenLM.load("stub")
    with FlopCounterMode(display=False) as counter:
        lm.logits(lm.final_hidden(torch.randn(1, N, lm.width)))
    unseen = N * N - flops.visible_pairs(N)
    assert flops.writing_flops(lm, 0, [N]) + 4 * lm.width * lm.n_layers * unseen == pytest.approx(counter.get_total_flops(), rel=1e-6)
