"""The words that an LM has as single tokens, with their vectors under an encoder: a linear guess at what a text's vector will be.

A sentence vector is, roughly, the sum of its words' centred vectors with common words held down (smooth inverse frequency: Arora, Liang &
Ma 2017; the cosine of that sum with the sentence's own vector is .68 for MiniLM and .94 for static vectors, on news and Wikipedia).
Shape letters: B targets, D vector width, W words.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm.assets.cache import home
from lsm.decode.vectors import Encode, unit
from lsm.files import atomic_write, fingerprint
from lsm.progress import say

if TYPE_CHECKING:
    from lsm.lm.frozen import FrozenLM
    from lsm.lm.tokens import Tokens

N_WORDS = 12_000
_COMMON = 4000
"""Words from this rank on have full weight; a word's rank is its token's, which byte-pair merging orders by frequency."""
CONTENT_WEIGHT = 0.249
"""Words of more weight (not the commonest few hundred) are content: a text says them once."""
_WORD = re.compile(r" [^\W\d_]+")


class Lexicon:
    """W words. Encoding them is done once for an encoder and an LM, whatever the number of targets: it is in nobody's budget."""

    def __init__(self, words: list[str], tokens: Tokens, z_WD: np.ndarray) -> None:
        """
        Args:
            words: in falling order of frequency.
            tokens: of the LM.
            z_WD: the words' vectors as the encoder gives them.
        """
        self.words = words
        self._place = {word: n for n, word in enumerate(words)}
        inside, opening = tokens.encode([f" {word}" for word in words]), tokens.encode(words)
        self.first_W = np.asarray([ids[0] for ids in inside], dtype=np.int64)
        """First token of the word within a text."""
        self.token_W = np.asarray([ids[0] if len(ids) == 1 else -1 for ids in inside], dtype=np.int64)
        """Its only token within a text, -1 for a word of several."""
        self.opening_W = np.asarray([ids[0] if len(ids) == 1 else -1 for ids in opening], dtype=np.int64)
        """The same at the very beginning of a text."""
        self.weight_W = np.sqrt(np.minimum(np.arange(len(words)) + 5, _COMMON) / _COMMON).astype(np.float32)
        z_WD = unit(z_WD)
        self.z_WD = unit(z_WD - z_WD.mean(0)) * self.weight_W[:, None] if words else z_WD

    @classmethod
    def of(cls, lm: FrozenLM, encode: Encode, encoder: dict[str, Any], *, n_words: int = N_WORDS) -> Lexicon:
        """The `n_words` most frequent words among the tokens of an LM; their vectors are kept in the asset cache.

        Args:
            encoder: fingerprint of the encoder.
        """
        words: list[str] = []
        for token in range(len(lm.head_VH)):
            text = lm.tokens.decode([token])
            if len(words) < n_words and _WORD.fullmatch(text):
                words.append(text[1:])
        if not words:
            return cls([], lm.tokens, np.zeros((0, int(encoder["dim"])), np.float32))
        path = home() / "lexicons" / f"{fingerprint({'encoder': encoder, 'words': words})}.npy"
        if path.exists():
            z_WD = np.load(path, allow_pickle=False).astype(np.float32)
        else:
            say(f"encoding {len(words):,} words once for this encoder, kept in {path.parent.name}/ of the asset cache")
            z_WD = unit(encode(words)).astype(np.float16)
            with contextlib.suppress(OSError):  # a cache that cannot be written only costs the time again
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as handle:
                    np.save(handle, z_WD)
        return cls(words, lm.tokens, z_WD.astype(np.float32))

    def __len__(self) -> int:
        return len(self.words)

    def place(self, word: str) -> int:
        """Number of a word as it is written, -1 when it is not in the list."""
        return self._place.get(word, -1)
