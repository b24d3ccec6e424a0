"""What predicted vectors cost in words: losses of the real next sentence under a frozen prefix decoder that reads the prediction.

Shape letters: N vectors, D vector width, T tokens, H hidden width of the LM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsm.decode.adapter import sentence_hidden, sentence_loss
from lsm.decode.decoders import PrefixDecoder
from lsm.decode.in_context import CONTEXT_TOKENS, last_tokens
from lsm.lm.lora import lora_off
from lsm.lm.loss import frozen_divergence, row_means
from lsm.lm.tokens import pad_ids


class PrefixLosses:
    """The objectives `words` and `text_lm` of `lsm.latent`, which knows no decoder: each in nats a token, with gradients into the vectors.

    Args:
        max_tokens: the first so many tokens of a sentence count.
        context_tokens: the last so many tokens of the text before it are what the LM reads itself.
    """

    def __init__(self, decoder: PrefixDecoder, *, max_tokens: int, context_tokens: int = CONTEXT_TOKENS) -> None:
        self.lm, self.adapter, self.max_tokens, self.context_tokens = decoder.lm, decoder.adapter, max_tokens, context_tokens
        self.adapter.requires_grad_(False)

    @property
    def name(self) -> str:
        """What tells one such decoder from another."""
        return f"{self.adapter.sha256()[:16]} through {self.lm.sha256[:16]}"

    def words(self, z_ND: Tensor, texts: Sequence[str]) -> Tensor:
        """Cross-entropy [N] of each text, and of its end where it is not cut, when its vector is read."""
        ids_NT, mask_NT = self.lm.tokenize(texts, max_tokens=self.max_tokens, add_end=True)
        cut_N = torch.tensor([len(ids) >= self.max_tokens for ids in self.lm.tokens.encode(texts)], device=self.lm.device)
        if cut_N.any():
            mask_NT[cut_N, self.max_tokens - 1] = False  # it does not end there
        return sentence_loss(self.adapter, self.lm, z_ND, ids_NT, mask_NT)[0]

    def text_lm(self, z_ND: Tensor, texts: Sequence[str], before: Sequence[Sequence[str]]) -> Tensor:
        """KL [N] of the LM that reads the text from the decoder that reads the vector, where each token of the text is to be told.

        The end of the sentence is left out: a text goes on where a decoder has to stop.

        Args:
            before: the sentences before each text, at least one.
        """
        ids_NT, mask_NT = self.lm.tokenize(texts, max_tokens=self.max_tokens)
        student_NTH, _ = sentence_hidden(self.adapter, self.lm, z_ND, ids_NT)
        with torch.autocast(self.lm.device.type, enabled=False):
            teacher_NTH = self._after_text(ids_NT, mask_NT, before)
            return row_means(frozen_divergence(teacher_NTH[mask_NT], student_NTH[mask_NT], self.lm.head_VH), mask_NT)

    @torch.no_grad()
    def _after_text(self, ids_NT: Tensor, mask_NT: Tensor, before: Sequence[Sequence[str]]) -> Tensor:
        """What the output layer reads [N, T, H] at each token when the LM, without the adapter, has read the text before."""
        read = last_tokens(self.lm, before, self.context_tokens)
        assert all(read), "nothing stands before one of the texts"
        rows = [[*ids, *own[mask].tolist()] for ids, own, mask in zip(read, ids_NT, mask_NT, strict=True)]
        # The last token of a row is told, never read.
        whole, _ = pad_ids([row[:-1] for row in rows], self.lm.tokens.end_id)
        with lora_off(self.lm), self.lm.fused_attention():
            hidden_NCH = self.lm.final_hidden(self.lm.embed(whole.to(self.lm.device)))
        first_N = torch.tensor([len(ids) - 1 for ids in read], device=self.lm.device)
        place_NT = (first_N[:, None] + torch.arange(ids_NT.shape[1], device=self.lm.device)).clamp(max=hidden_NCH.shape[1] - 1)
        return hidden_NCH.gather(1, place_NT[..., None].expand(-1, -1, hidden_NCH.shape[-1]))
