"""A whole reasoning stack at work: texts to idea vectors, ideas to thoughts, thoughts to texts, and what a target costs under a thought.

Shape letters: B rows, S tokens of the encoder, E encoder width, D idea width, P prefix positions, T tokens, H hidden width of the LM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lsm.corpus.format import require_same_space
from lsm.decode.adapter import sentence_loss
from lsm.decode.decoders import PrefixDecoder
from lsm.encode.encoder import load_encoder
from lsm.encode.token_states import padded, token_rows
from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Sampling
from lsm.lm.lora import lora_off
from lsm.reason.model import ReasonModel

_ROWS_AT_ONCE = 32
_NO_REPEAT_TOKENS = 8
"""Longest run of tokens that may occur twice is one shorter: names are said again, and a name such as #Person1# is four tokens."""


class Stack:
    """Encoder, trained model and LM."""

    def __init__(self, encoder: Any, model: ReasonModel, lm: FrozenLM, *, max_new_tokens: int = 64) -> None:
        self.encoder, self.lm, self.model = encoder, lm, model.to(lm.device).eval()
        self._decoder = PrefixDecoder(lm, model.expansion)  # puts LoRA layers into the LM
        self.sampling = Sampling(max_new_tokens=max_new_tokens, no_repeat_tokens=_NO_REPEAT_TOKENS)
        self.prompt_1QH = prompt_embeddings(lm, model.settings.prompt)

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "auto", encoder: str | None = None, lm: str | None = None,
        quantise: Literal["4bit"] | None = None, max_new_tokens: int = 64,
    ) -> Stack:  # fmt: skip
        """Read a run; `encoder` and `lm` say where those lie when they are not the assets of their names.

        Raises:
            UserError: no stack there, or another encoder or LM than it was trained with.
        """
        from lsm.provenance import choose_device

        model = ReasonModel.from_pretrained(folder)
        found = load_encoder(encoder or model.home.encoder["name"], device=device)
        require_same_space(model.home.encoder, found.fingerprint(), what=f"stack {folder}")
        frozen = FrozenLM.load(lm or model.home.lm["name"], device=choose_device(device)[0], quantise=quantise)
        return cls(found, model, frozen, max_new_tokens=max_new_tokens)

    def ideas(self, texts: Sequence[str]) -> np.ndarray:
        """Idea vectors [B, D] float32 as float16 keeps them: what is counted in bytes is what is read."""
        return ideas_beside([self], texts)[0]

    @torch.inference_mode()
    def think(self, ideas_BD: np.ndarray) -> np.ndarray:
        """What the middle makes of ideas, [B, D] float32 of unit length."""
        return self.model.think(torch.from_numpy(ideas_BD).float().to(self.lm.device)).cpu().numpy()

    @torch.inference_mode()
    def write(self, ideas_BD: np.ndarray) -> list[str]:
        """The text of each idea, greedily."""
        texts: list[str] = []
        for start in range(0, len(ideas_BD), _ROWS_AT_ONCE):
            prefix_BPH, bias = self._decoder.conditions(self.think(ideas_BD[start : start + _ROWS_AT_ONCE]))
            prompt_BQH = self.prompt_1QH.expand(len(prefix_BPH), -1, -1)
            texts += self.lm.generate(torch.cat([prefix_BPH.to(self.lm.dtype), prompt_BQH], 1), self.sampling, bias=bias)
        return texts

    @torch.inference_mode()
    def nats(self, ideas_BD: np.ndarray, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Nats of each whole target under its idea, and its tokens (end token included), both [B]."""
        nats, counts = [], []
        for start in range(0, len(targets), _ROWS_AT_ONCE):
            ids_BT, mask_BT = target_ids(self.lm, targets[start : start + _ROWS_AT_ONCE], self.model.settings.prompt)
            thoughts_BD = torch.from_numpy(self.think(ideas_BD[start : start + _ROWS_AT_ONCE])).to(self.lm.device)
            loss_B, _ = sentence_loss(self.model.expansion, self.lm, thoughts_BD, ids_BT, mask_BT, self.prompt_1QH)
            nats.append((loss_B * mask_BT.sum(1)).cpu().numpy())
            counts.append(mask_BT.sum(1).cpu().numpy())
        return np.concatenate(nats), np.concatenate(counts)

    @torch.inference_mode()
    def read(self, text: str, targets: Sequence[str], *, write: bool = True) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
        """What the LM, without the stack's LoRA layers, writes when it reads text and prompt itself; nats and tokens of targets there."""
        prompt = self.model.settings.prompt
        before = f"{text}\n\n{prompt}" if text else prompt
        ids = [*self.lm.tokens.start_ids, *self.lm.tokens.encode([before])[0]] or [self.lm.tokens.end_id]
        read_1QH = self.lm.embed(torch.tensor([ids], dtype=torch.int64, device=self.lm.device))
        nats, counts = [], []
        with lora_off(self.lm):
            written = self.lm.generate(read_1QH, self.sampling)[0] if write else ""
            for start in range(0, len(targets), _ROWS_AT_ONCE):
                ids_BT, mask_BT = target_ids(self.lm, targets[start : start + _ROWS_AT_ONCE], prompt)
                loss_B = self.lm.prefix_loss(read_1QH.expand(len(ids_BT), -1, -1), ids_BT, mask_BT)
                nats.append((loss_B * mask_BT.sum(1)).cpu().numpy())
                counts.append(mask_BT.sum(1).cpu().numpy())
        return written, (np.concatenate(nats), np.concatenate(counts))


@torch.inference_mode()
def ideas_beside(stacks: Sequence[Stack], texts: Sequence[str]) -> list[np.ndarray]:
    """`Stack.ideas` of stacks that read the same encoder: it runs once."""
    first, rows = stacks[0], [[] for _ in stacks]
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        states = token_rows(first.encoder, texts[start : start + _ROWS_AT_ONCE], first.model.max_input_tokens)
        for stack, own in zip(stacks, rows, strict=True):
            own.append(stack.model.ideas(*padded(states, stack.lm.device)).cpu().numpy())
    return [np.concatenate(own).astype(np.float16).astype(np.float32) for own in rows]


def prompt_embeddings(lm: FrozenLM, prompt: str) -> Tensor:
    """Input embeddings [1, Q, H] of the prompt; Q = 0 where it is empty."""
    ids = lm.tokens.encode([prompt])[0] if prompt else []
    return lm.embed(torch.tensor([ids], dtype=torch.int64, device=lm.device)).detach()


def target_ids(lm: FrozenLM, targets: Sequence[str], prompt: str, *, max_tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """ids_BT and mask_BT of targets as they follow the prompt: behind a word or a mark stands a space."""
    lead = " " if prompt and not prompt[-1].isspace() else ""
    return lm.tokenize([lead + target for target in targets], max_tokens=max_tokens, add_end=True)
