"""What `lsm bench cost` measures: systems, lengths and sizes. Imported by the command line: nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsm.config import STRICT
from lsm.errors import UserError

SYSTEMS = {
    "token-full": "token, full attention",
    "token-window": "token, window",
    "latent": "latent alone",
    "latent-encoding": "latent + encoding",
    "latent-encoding-decoding": "latent + encoding + decoding",
}
"""What is measured, and what tables and plots call it."""
PASSES = ("forward", "training")


@dataclass(kw_only=True)
class CostSettings:
    """Options of `lsm bench cost`: a token-level transformer beside the latent one of equal width and depth."""

    __pydantic_config__ = STRICT

    tokens: str = "1000,5000,20000,100000"
    """Lengths of the document, in tokens of --tokenizer; each is cut at the end of a sentence."""
    window: int = 1024
    """Tokens that token-window looks back on."""
    hidden: int = 256
    """Width of both transformers; the default sizes are those of configs/latent-base.yaml."""
    layers: int = 4
    """Blocks of both."""
    heads: int = 4
    """Attention heads of both."""
    anchor: Literal["attention", "last", "none"] = "attention"
    """What the latent transformer's head corrects, as model.anchor of lsm pretrain."""
    tokenizer: str = "smollm2-135m-instruct"
    """Whose tokens are counted, and whose vocabulary the token-level transformer has."""
    decoder: Literal["prefix", "none"] = "prefix"
    """What words the vectors again; none leaves latent-encoding-decoding out."""
    adapter: str | None = None
    """Adapter folder or name of a shipped one; default: the shipped one for the encoder."""
    lm: str | None = None
    """Where the adapter's LM lies, when it is not the asset of its name."""
    decode_sentences: int = 128
    """Sentences, spread evenly over the document, that are decoded; their time is scaled to all of it, and the row says so (default: one
    batch of the decoder)."""

    def __post_init__(self) -> None:
        problems = [
            f"--{name.replace('_', '-')} {value}: must be at least 1"
            for name in ("window", "hidden", "layers", "heads", "decode_sentences")
            if (value := getattr(self, name)) < 1
        ]
        if not problems and self.hidden % (2 * self.heads):
            problems.append(f"--hidden {self.hidden}: must be a multiple of twice --heads {self.heads}")
        if problems:
            raise UserError("; ".join(problems))
