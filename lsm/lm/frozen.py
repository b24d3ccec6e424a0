"""The one frozen causal LM that everything speaks through: soft prefix, full-sequence loss, generation, hidden states, injection.

Shape letters: B rows, T tokens, P prefix positions, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lsm.errors import UserError, missing_extra
from lsm.files import fingerprint
from lsm.lm.generation import Beside, Bias, Sampling, generate_ids
from lsm.lm.loss import frozen_cross_entropy, frozen_mean, row_means
from lsm.lm.tokens import STUB, ByteTokens, FolderTokens, Tokens, pad_ids
from lsm.provenance import fast_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FrozenLM:
    """A causal LM of transformers whose weights never change (LoRA layers, if asked for, sit beside them).

    Callers bring vectors and get losses, texts, hidden states or logits; the LM knows nothing of who calls.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tokens, *, name: str, sha256: str) -> None:
        self.model, self.tokens, self.name, self.sha256 = model.eval(), tokens, name, sha256
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        config = model.config
        if getattr(config, "final_logit_softcapping", None):
            raise UserError(f"LM {name} caps its logits, which the fused loss cannot; choose one without final_logit_softcapping")
        self.width: int = config.get_text_config().hidden_size
        self.head_VH: Tensor = model.get_output_embeddings().weight
        self._body = model.get_decoder()
        self._layers_name = "h" if hasattr(self._body, "h") else "layers"  # as GPT-2 and most others call them
        self._embedding = model.get_input_embeddings()
        one = torch.ones(1, dtype=torch.int64, device=self.head_VH.device)
        self._input_scale = float(self.embed(one).norm() / self.head_VH[1].norm())  # some LMs scale their inputs, such as Gemma

    @classmethod
    def load(
        cls, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, quantise: Literal["4bit"] | None = None
    ) -> FrozenLM:
        """Load an LM by asset name, hub id or local folder; `stub` is a tiny random one for tests.

        Args:
            device: where it runs.
            dtype: None takes the fast type of the device (bf16 where the hardware multiplies it).
            quantise: `4bit` keeps the linear layers as NF4 through bitsandbytes (on CUDA); embeddings and output layer stay as they are.

        Raises:
            UserError: unknown name, a folder that holds no causal LM, or `quantise` without a CUDA device or without bitsandbytes.
        """
        device = torch.device(device)
        dtype = dtype or (torch.float32 if name == STUB else fast_dtype(device)[0])
        how = {} if quantise is None else _in_4bit(device, dtype)
        if name == STUB:
            return cls(_stub_model().to(device, dtype), ByteTokens(), name=STUB, sha256=STUB)
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from lsm.assets import resolve

        asset = resolve(name)
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        # Short sequences on CPU: plain attention multiplies the same numbers as SDPA and its bf16 backward pass is five times faster.
        attention = "eager" if device.type == "cpu" else "sdpa"
        try:
            model = AutoModelForCausalLM.from_pretrained(asset.path, dtype=dtype, attn_implementation=attention, **how)
        except (OSError, ValueError) as error:
            raise UserError(f"LM {name}: {asset.path} holds no causal LM ({str(error).splitlines()[0]}); see: lsm assets list") from error
        finally:
            if bars:
                logging.enable_progress_bar()
        return cls(model if how else model.to(device), FolderTokens(Path(asset.path)), name=asset.name, sha256=asset.sha256)

    def fingerprint(self) -> dict[str, str]:
        """Which LM this is: an adapter trained with it stores this."""
        return {"name": self.name, "sha256": self.sha256}

    @property
    def device(self) -> torch.device:
        return self.head_VH.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head_VH.dtype

    def drop_layers(self) -> None:
        """Free the layers where only tokenizer and embeddings are wanted; nothing can be read after that."""
        self._layers = nn.ModuleList()

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def _layers(self) -> nn.ModuleList:
        return getattr(self._body, self._layers_name)

    @_layers.setter
    def _layers(self, layers: nn.ModuleList) -> None:
        setattr(self._body, self._layers_name, layers)

    def tokenize(self, texts: Sequence[str], *, max_tokens: int | None = None, add_end: bool = False) -> tuple[Tensor, Tensor]:
        """ids_BT int64 and mask_BT bool on the LM's device, padded on the right.

        Args:
            max_tokens: longest row, the end token included; what is over is cut off (the end token stays).
            add_end: append the end token, so that the LM learns where a sentence stops.
        """
        rows = self.tokens.encode(texts)
        if max_tokens is not None:
            rows = [row[: max_tokens - add_end] for row in rows]
        if add_end:
            rows = [[*row, self.tokens.end_id] for row in rows]
        ids_BT, mask_BT = pad_ids(rows, self.tokens.end_id)
        return ids_BT.to(self.device), mask_BT.to(self.device)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Input embeddings [B, T, H] as the LM itself scales them."""
        return self._embedding(ids_BT)

    def embed_each(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """`embed` of rows of different lengths, each [T, H]."""
        return [self.embed(torch.tensor([list(row)], dtype=torch.int64, device=self.device))[0] for row in rows]

    def embedding_rms(self) -> float:
        """Root mean square of one entry of the input embeddings: the size that a soft prefix should start at."""
        sample = torch.arange(0, len(self.head_VH), max(1, len(self.head_VH) // 4096), device=self.device)
        return self.embed(sample).float().pow(2).mean().sqrt().item()

    def soft_words(self, lift_NH: Tensor, offset_V: Tensor) -> tuple[Tensor, Tensor]:
        """Input embeddings of fuzzy words: the mean embedding under p = softmax(E·lift + offset), for an LM with tied embeddings.

        Returns:
            The log-sum-exp [N] float32, differentiable in `lift_NH`, and the mean embeddings [N, H] without gradient, scaled as inputs are.
        """
        logsumexp_N, mean_NH = frozen_mean(lift_NH, self.head_VH, offset_V)
        return logsumexp_N, mean_NH * self._input_scale

    def final_hidden(self, inputs_BTH: Tensor, cache: Any = None, mask_BT: Tensor | None = None) -> Tensor:
        """Hidden states [B, T, H] that the output layer reads.

        Args:
            cache: of what was read before the inputs; it grows.
            mask_BT: which positions are real, those in the cache and the inputs together; padding may then stand anywhere and is not
                counted. None: all are, or padding stands on the right, where no real token sees it.
        """
        output = self._body(
            inputs_embeds=inputs_BTH.to(self.dtype), past_key_values=cache, use_cache=cache is not None, **_placed(mask_BT, inputs_BTH)
        )
        return output.last_hidden_state

    def prefix_hidden(self, prefix_BPH: Tensor, ids_BT: Tensor, bias: Tensor | None = None) -> Tensor:
        """Final hidden states [B, T, H] from which the output layer tells each of the tokens after a soft prefix; arguments as of
        `prefix_loss`."""
        inputs = torch.cat([prefix_BPH.to(self.dtype), self.embed(ids_BT[:, :-1])], dim=1)
        hidden_BTH = self.final_hidden(inputs)[:, prefix_BPH.shape[1] - 1 :]
        return hidden_BTH if bias is None else hidden_BTH.float() + (bias[:, None] if bias.ndim == 2 else bias)

    def prefix_loss(self, prefix_BPH: Tensor, ids_BT: Tensor, mask_BT: Tensor, bias: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of each row's tokens, from the first to the end token, after a soft prefix.

        Args:
            prefix_BPH: soft prefix; gradients flow into it. P ≥ 1.
            ids_BT: tokens, padded on the right.
            mask_BT: which of them count.
            bias: [B, H] or [B, T, H] added to the final hidden states: with logits E·h it adds E·bias to every logit.

        Returns:
            loss_B float32, one number per row.
        """
        hidden_BTH = self.prefix_hidden(prefix_BPH, ids_BT, bias)
        return row_means(frozen_cross_entropy(hidden_BTH[mask_BT], self.head_VH, ids_BT[mask_BT]), mask_BT)

    def read(self, inputs_BTH: Tensor, cache: Any = None, mask_BT: Tensor | None = None) -> tuple[Tensor, Any]:
        """Read T more positions and return the last one's hidden state [B, H] and the grown cache (None starts one, through which gradients
        flow); `mask_BT` as of `final_hidden`."""
        placed = _placed(mask_BT, inputs_BTH)
        output = self._body(inputs_embeds=inputs_BTH.to(self.dtype), past_key_values=cache, use_cache=True, **placed)
        return output.last_hidden_state[:, -1], output.past_key_values

    def new_cache(self) -> Any:
        """An empty cache for `read` and `step`: one that grows in place, where every layer attends to all that was read."""
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
            return None
        from lsm.lm.cache import growing_cache

        return growing_cache()

    @contextmanager
    def fused_attention(self) -> Iterator[None]:
        """While open, attention is SDPA, which is the faster one where no gradient is wanted."""
        config = self.model.config.get_text_config()
        before = config._attn_implementation
        config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            config._attn_implementation = before

    def logits(self, hidden_BH: Tensor, bias_BH: Tensor | None = None) -> Tensor:
        """float32 logits [B, V] of the next token; `bias_BH` is added to the hidden states."""
        if bias_BH is not None:
            hidden_BH = (hidden_BH.float() + bias_BH).to(self.dtype)
        return nn.functional.linear(hidden_BH, self.head_VH).float()

    def step(
        self, inputs_BTH: Tensor, cache: Any = None, bias_BH: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """`read`, then `logits`."""
        hidden_BH, cache = self.read(inputs_BTH, cache, mask_BT)
        return self.logits(hidden_BH, bias_BH), cache

    def generate(
        self,
        prefix_BPH: Tensor,
        sampling: Sampling | None = None,
        *,
        bias: Bias | Tensor | None = None,
        prompt_ids_T: Tensor | None = None,
        seeds_B: Sequence[int] | None = None,
        beside: Beside | None = None,
        lift_BV: Tensor | None = None,
        cache: Any = None,
        mask_BP: Tensor | None = None,
    ) -> list[str]:
        """Text after each soft prefix, stripped of outer whitespace; arguments as in `lsm.lm.generation.generate_ids`."""
        rows = generate_ids(
            self, prefix_BPH, sampling or Sampling(), bias=bias, prompt_ids_T=prompt_ids_T, seeds_B=seeds_B, beside=beside,
            lift_BV=lift_BV, cache=cache, mask_BP=mask_BP,
        )  # fmt: skip
        return [self.tokens.decode(row).strip() for row in rows]

    def hidden(self, inputs_BTH: Tensor, layer: int) -> Tensor:
        """The residual stream [B, T, H] after `layer` layers (0 = the inputs, n_layers = before the final norm)."""
        return self.hidden_at(inputs_BTH, [layer])[0]

    def hidden_at(self, inputs_BTH: Tensor, wanted: Sequence[int], cache: Any = None) -> list[Tensor]:
        """The residual stream [B, T, H] after each of the `wanted` numbers of layers; what lies above the highest is not asked.

        Args:
            cache: of what was read before the inputs; it grows. Padding stands on the right.
        """
        caught = {0: inputs_BTH.to(self.dtype)}
        highest, layers = max(wanted), self._layers
        if highest:
            with ExitStack() as stack:
                for layer in {*wanted} - {0}:
                    stack.enter_context(self._hooked(layer - 1, lambda stream, at=layer: caught.setdefault(at, stream)))
                self._layers = layers[:highest]
                try:
                    self.final_hidden(inputs_BTH, cache)
                finally:
                    self._layers = layers
        return [caught[layer] for layer in wanted]

    @contextmanager
    def inject(self, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While open, the residual stream after `layer` (1 … n_layers) is replaced by `change(stream)`, in every verb."""
        with self._hooked(layer - 1, change):
            yield

    @contextmanager
    def _hooked(self, index: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        assert 0 <= index < self.n_layers, f"layer {index + 1} of {self.n_layers}"
        handle = self._layers[index].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def _in_4bit(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` for linear layers in NF4 (Dettmers et al. 2023, QLoRA)."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if device.type != "cuda":
        raise UserError(f"4-bit weights want a CUDA device, not {device}; leave quantise out, or run with --device cuda")
    if find_spec("bitsandbytes") is None:
        raise missing_extra("bitsandbytes", "quantised")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": device}}


def _placed(mask_BT: Tensor | None, inputs_BTH: Tensor) -> dict[str, Tensor]:
    """What the body must know of padding: which positions count, and how many real ones stand before each of the inputs."""
    if mask_BT is None:
        return {}
    places_BT = (mask_BT.long().cumsum(1) - 1).clamp(min=0)
    return {"attention_mask": mask_BT.long(), "position_ids": places_BT[:, places_BT.shape[1] - inputs_BTH.shape[1] :]}


def _stub_model() -> PreTrainedModel:
    """A random two-layer Llama over bytes, the same weights every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=ByteTokens.size, tie_word_embeddings=True, attn_implementation="eager", **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.1)
    return model


def same_lm(stored: dict[str, str], lm: FrozenLM) -> bool:
    """Whether `stored` (from an adapter) is the LM at hand; only its bytes count, not the name it was asked by."""
    return fingerprint(stored.get("sha256")) == fingerprint(lm.sha256)
