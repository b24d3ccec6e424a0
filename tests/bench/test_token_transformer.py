"""The token-level baseline: its window and its loss are the plain ones, only cheaper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lsm.bench.token_transformer import TokenTransformer, chunked_cross_entropy, window_attention
from lsm.latent.settings import ModelSettings
from lsm.training.optimizer import trained_parameters

SMALL = ModelSettings(hidden=32, layers=2, heads=2, dropout=0.0)


@pytest.mark.parametrize("T", [3, 4, 5, 8, 11, 17])
@pytest.mark.parametrize("window", [1, 4, 8])
def test_window_equals_masked_full_attention_with_its_gradients(T: int, window: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, T, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    distance = torch.arange(T)[:, None] - torch.arange(T)
    outputs = [
        window_attention(*inputs, window),
        F.scaled_dot_product_attention(*inputs, attn_mask=(distance >= 0) & (distance < window)),
    ]
    weights = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad((output * weights).sum(), inputs) for output in outputs]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_window_as_long_as_the_text_is_full_attention() -> None:
    full, window = TokenTransformer(SMALL, 50), TokenTransformer(SMALL, 50, 12)
    window.load_state_dict(full.state_dict())
    ids_BT = torch.randint(50, (2, 12))
    torch.testing.assert_close(window(ids_BT), full(ids_BT))
    longer_BT = torch.cat([torch.randint(50, (2, 1)), ids_BT], 1)
    assert not torch.allclose(window(longer_BT), full(longer_BT), atol=1e-5)


def test_read_is_the_last_row_of_all_logits() -> None:
    model, ids_BT = TokenTransformer(SMALL, 50), torch.randint(50, (2, 9))
    torch.testing.assert_close(model.read(ids_BT), (model(ids_BT) @ model.embedding.weight.T)[:, -1])


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_chunked_cross_entropy_equals_plain_with_its_gradients(rows: int) -> None:
    torch.manual_seed(0)
    hidden_NH = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    head_VH = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    targets_N = torch.randint(20, (11,))
    # Logits are float32 in the chunked form: its sums over a large vocabulary are not made in bf16.
    chunked = chunked_cross_entropy(hidden_NH.float(), head_VH.float(), targets_N, rows=rows)
    plain = F.cross_entropy(hidden_NH @ head_VH.T, targets_N)
    torch.testing.assert_close(chunked.double(), plain, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(3 * chunked, (hidden_NH, head_VH)), torch.autograd.grad(3 * plain, (hidden_NH, head_VH)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_loss_trains_the_tied_embeddings_through_both_ends() -> None:
    torch.manual_seed(0)
    model, ids_BT = TokenTransformer(SMALL, 50), torch.randint(50, (1, 9))
    weights = list(trained_parameters(model).values())
    plain = F.cross_entropy((model(ids_BT)[:, :-1] @ model.embedding.weight.T).flatten(0, 1), ids_BT[:, 1:].flatten())
    expected = torch.autograd.grad(plain, weights)
    loss = model.loss(model(ids_BT), ids_BT)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, weights), expected, rtol=1e-3, atol=1e-5)
