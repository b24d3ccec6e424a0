"""LoRA layers beside a frozen LM, through peft: what an adapter may train inside the LM without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM

_NAME = "lsm"


def attach_lora(lm: FrozenLM, rank: int) -> nn.ParameterDict:
    """Put LoRA layers of `rank` beside every linear layer of the LM's body and return their parameters, float32, by name.

    They start as no change at all (Hu et al. 2021: one factor is zero), scaled by 2 like rank-stable practice with alpha = 2·rank.
    The output layer and the embeddings stay untouched. An LM carries one set at a time: `detach_lora` first.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    assert not has_lora(lm), "this LM already carries LoRA layers"
    found = {name.split(".")[-1]: module for name, module in lm._body.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    transposed = any(isinstance(module, Conv1D) for module in found.values())  # GPT-2's linear layers
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=sorted(found), fan_in_fan_out=transposed)
    lm._body.is_loaded_in_4bit = getattr(lm.model, "is_loaded_in_4bit", False)  # peft asks the module that it is given
    inject_adapter_in_model(config, lm._body, adapter_name=_NAME)
    parameters = {}
    for name, parameter in lm._body.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
            parameters[name.replace(".", "/")] = parameter
        else:
            parameter.requires_grad_(False)
    return nn.ParameterDict(parameters)


def detach_lora(lm: FrozenLM) -> None:
    """Take the LoRA layers away: the LM is again what it was."""
    for parent in list(lm._body.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "lora_A"):
                setattr(parent, name, child.base_layer)


def stored_lora(state: Mapping[str, Tensor], prefix: str = "lora.") -> nn.ParameterDict:
    """The LoRA parameters among a network's stored weights."""
    return nn.ParameterDict({name.removeprefix(prefix): nn.Parameter(value) for name, value in state.items() if name.startswith(prefix)})


@contextmanager
def lora_off(lm: FrozenLM) -> Iterator[None]:
    """While open, the LM answers as if it had no LoRA layers."""
    layers: list[Any] = [module for module in lm._body.modules() if hasattr(module, "lora_A")]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def has_lora(lm: FrozenLM) -> bool:
    """Whether LoRA layers sit beside the LM."""
    return any(hasattr(module, "lora_A") for module in lm._body.modules())
