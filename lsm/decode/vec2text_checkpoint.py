"""vec2text's published checkpoint format: config.json + safetensors become a hypothesis model and a corrector built on transformers' T5.

Written from the paper (Morris et al. 2023, "Text Embeddings Reveal (Almost) As Much As Text") and from the names and shapes in the
checkpoints; no line of the vec2text package, whose licence binds what is made with it. T5's sizes are read off the weights, so that
neither a second model nor a T5 config is fetched.
Shape letters: B vectors, D vector width, T tokens, P encoder positions, H hidden width of T5, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from lsm.errors import UserError
from lsm.files import read_json

_T5 = "encoder_decoder."
_IGNORED = ("embedder.",)
"""The inverted encoder's own weights, which hypothesis checkpoints carry along; vectors come from the encoder of lsm."""
_TIED = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
_CONVERT = (
    "convert it where you trust its source: python -c \"import torch; from safetensors.torch import save_file; "
    "s = torch.load('pytorch_model.bin', weights_only=True); save_file({k: v.clone() for k, v in s.items()}, 'model.safetensors')\""
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's folder holds."""

    folder: Path
    name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    """float32, without the encoder's own."""

    @classmethod
    def read(cls, folder: Path, name: str) -> Checkpoint:
        """Read config.json and every *.safetensors of a folder.

        Raises:
            UserError: no such files, a pickle only, weights that are not finite, or a variant that is not read.
        """
        from safetensors import SafetensorError, safe_open

        config = read_json(folder / "config.json")
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
            found = f"{pickled[0].name} is a pickle, which is never opened" if pickled else "it holds no *.safetensors"
            raise UserError(f"vec2text checkpoint {name}: {found}; {_CONVERT}")
        tensors: dict[str, Tensor] = {}
        for file in files:
            try:
                with safe_open(file, framework="pt") as opened:
                    tensors |= {key: opened.get_tensor(key).float() for key in opened.keys() if not key.startswith(_IGNORED)}  # noqa: SIM118
            except SafetensorError as error:
                raise UserError(f"vec2text checkpoint {name}: {file.name} is damaged ({error}); fetch it again") from error
        broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise UserError(f"vec2text checkpoint {name}: {broken[0]} holds NaN or infinity ({len(broken)} such tensors); fetch it again")
        if config.get("use_lora"):
            raise UserError(f"vec2text checkpoint {name}: use_lora is set, and only checkpoints with whole weights are read")
        if (strategy := config.get("embedding_transform_strategy", "repeat")) != "repeat":
            raise UserError(f"vec2text checkpoint {name}: embedding_transform_strategy {strategy!r}; only 'repeat' is read")
        return cls(folder, name, config, tensors)

    def tensor(self, key: str) -> Tensor:
        """The tensor `key`; `UserError` when it is absent."""
        if key not in self.tensors:
            holds = ", ".join(sorted({key.partition(".")[0] for key in self.tensors})) or "nothing"
            raise UserError(f"vec2text checkpoint {self.name}: no tensor {key} (it holds {holds}); is this the right folder of the two?")
        return self.tensors[key]

    @property
    def max_tokens(self) -> int:
        """Longest text that it was trained on."""
        return int(self.config.get("max_seq_length") or 32)

    def fill(self, module: nn.Module) -> None:
        """Put the tensors into `module`: every name and every shape must be there, and nothing more."""
        head = next((self.tensors[_T5 + key] for key in _TIED if _T5 + key in self.tensors), None)
        have = dict(self.tensors)
        if head is not None:  # safetensors keep one of several tied tensors
            have = {_T5 + key: head for key in _TIED} | have
        want = {key: tensor.shape for key, tensor in module.state_dict().items()}
        wrong = {
            "missing": sorted(want.keys() - have.keys()),
            "unknown": sorted(have.keys() - want.keys()),
            "of another shape": sorted(key for key in want.keys() & have.keys() if want[key] != have[key].shape),
        }
        for what, keys in wrong.items():
            if keys:
                raise UserError(f"vec2text checkpoint {self.name}: tensor {keys[0]} is {what} ({len(keys)} such); fetch it again")
        module.load_state_dict(have, assign=True)
        module.requires_grad_(False).eval()


class _Inverter(nn.Module):
    """The T5 and the projection of a vector to `repeats` encoder positions that both models share."""

    def __init__(self, checkpoint: Checkpoint, projections: tuple[str, ...]) -> None:
        super().__init__()
        self.name, self.max_tokens = checkpoint.name, checkpoint.max_tokens
        with torch.device("meta"):  # filled at once: no time goes into random weights
            self.encoder_decoder = T5ForConditionalGeneration(_t5_config(checkpoint))
            self.width = self.encoder_decoder.config.d_model
            self.repeats = checkpoint.tensor(f"{projections[0]}.3.weight").shape[0] // self.width
            for name in projections:
                self.dim, between = checkpoint.tensor(f"{name}.0.weight").shape[1], checkpoint.tensor(f"{name}.0.weight").shape[0]
                layers = nn.Linear(self.dim, between), nn.Identity(), nn.GELU(), nn.Linear(between, self.width * self.repeats)
                self.add_module(name, nn.Sequential(*layers))  # 1 is a dropout, which only training needs
        if (said := checkpoint.config.get("num_repeat_tokens", self.repeats)) != self.repeats:
            raise UserError(
                f"vec2text checkpoint {self.name}: num_repeat_tokens is {said}, its weights have {self.repeats}; fetch it again"
            )

    def project(self, name: str, z_BD: Tensor) -> Tensor:
        """Positions [B, repeats, H] of a vector."""
        return getattr(self, name)(z_BD).reshape(len(z_BD), self.repeats, self.width)

    def generate(self, inputs_BPH: Tensor, mask_BP: Tensor, beams: int) -> Tensor:
        """The `beams` best texts of a beam search for each row, [B · beams, T], start token first, padded on the right."""
        return self.encoder_decoder.generate(
            inputs_embeds=inputs_BPH, attention_mask=mask_BP, num_beams=beams, num_return_sequences=beams, do_sample=False,
            max_length=self.max_tokens, early_stopping=False,
        )  # fmt: skip


class HypothesisModel(_Inverter):
    """Vector → first text (the paper's zero-step model)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, ("embedding_transform",))
        checkpoint.fill(self)

    @torch.inference_mode()
    def write(self, e_BD: Tensor) -> Tensor:
        """The greedy hypothesis of each vector, ids_BT."""
        inputs_BPH = self.project("embedding_transform", e_BD)
        return self.generate(inputs_BPH, torch.ones(inputs_BPH.shape[:2], dtype=torch.long, device=e_BD.device), 1)


class CorrectorModel(_Inverter):
    """Target vector, hypothesis text and its vector → better texts."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, ("embedding_transform_1", "embedding_transform_2", "embedding_transform_3"))
        with torch.device("meta"):
            self.layernorm = nn.LayerNorm(self.width)
        self.blind = bool(checkpoint.config.get("corrector_ignore_hypothesis_embedding"))
        """The paper's ablation without feedback: the hypothesis' vector is not read."""
        checkpoint.fill(self)

    def inputs(self, e_BD: Tensor, hypothesis_BD: Tensor, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder positions and mask: ∎ e ∎ ê ∎ e − ê ∎ tokens, where ∎ is the end token; all through one layer norm."""
        if self.blind:
            hypothesis_BD = e_BD
        config, embed = self.encoder_decoder.config, self.encoder_decoder.get_input_embeddings()
        end_B1H = embed(torch.full((len(e_BD), 1), config.eos_token_id, device=e_BD.device))
        parts = (
            end_B1H, self.project("embedding_transform_1", e_BD),
            end_B1H, self.project("embedding_transform_3", hypothesis_BD),
            end_B1H, self.project("embedding_transform_2", e_BD - hypothesis_BD),
            end_B1H, embed(ids_BT),
        )  # fmt: skip
        mask_BT = (ids_BT != config.pad_token_id).long()
        always = torch.ones(len(ids_BT), 4 + 3 * self.repeats, dtype=torch.long, device=ids_BT.device)
        return self.layernorm(torch.cat(parts, dim=1)), torch.cat([always, mask_BT], dim=1)

    @torch.inference_mode()
    def write(self, e_BD: Tensor, hypothesis_BD: Tensor, ids_BT: Tensor, beams: int) -> Tensor:
        """`beams` corrections of each row, ids [B · beams, T]."""
        return self.generate(*self.inputs(e_BD, hypothesis_BD, ids_BT), beams)


def _t5_config(checkpoint: Checkpoint) -> T5Config:
    """The sizes of the T5 whose weights these are; what sizes do not tell is the same in all published T5 models."""
    attention, feed = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    stored = {key.removeprefix(_T5): tensor for key, tensor in checkpoint.tensors.items() if key.startswith(_T5)}
    embeddings = [stored[key] for key in _TIED if key in stored] or [checkpoint.tensor(_T5 + _TIED[0])]
    vocabulary, width = embeddings[0].shape
    heads = checkpoint.tensor(f"{_T5}{attention}.relative_attention_bias.weight").shape[1]
    gated = f"{feed}.wi_0.weight" in stored
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        num_heads=heads,
        d_kv=checkpoint.tensor(f"{_T5}{attention}.q.weight").shape[0] // heads,
        d_ff=checkpoint.tensor(f"{_T5}{feed}.wi{'_0' if gated else ''}.weight").shape[0],
        num_layers=_n_blocks(stored, "encoder"),
        num_decoder_layers=_n_blocks(stored, "decoder"),
        relative_attention_num_buckets=checkpoint.tensor(f"{_T5}{attention}.relative_attention_bias.weight").shape[0],
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=all(tensor is embeddings[0] or torch.equal(tensor, embeddings[0]) for tensor in embeddings),
        decoder_start_token_id=0,
    )


def _n_blocks(stored: dict[str, Tensor], stack: str) -> int:
    return len({key.split(".")[2] for key in stored if key.startswith(f"{stack}.block.")})
