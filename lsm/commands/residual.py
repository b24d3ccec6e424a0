"""Residual codes as the command line knows them: options, the coder that encoding workers load, and the reader of a corpus's codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lsm.decode.load import DEFAULT_LM
from lsm.errors import UserError

if TYPE_CHECKING:
    from lsm.codes.superposition import SuperpositionEncoder
    from lsm.corpus.reader import Corpus
    from lsm.decode.code_prior import Prior
    from lsm.decode.code_reader import Reading
    from lsm.decode.learned_code import LearnedCode
    from lsm.encode.encoder import CodeArrays, SentenceEncoder
    from lsm.encode.worker import Coder

Residual = Literal["none", "superposition", "learned"]


@dataclass(frozen=True, kw_only=True)
class CodeRecipe:
    """Which superposition code to make; picklable, for the workers."""

    lm: str = DEFAULT_LM
    """Whose tokenizer; its weights are not needed."""
    dims: int = 256
    bits: int = 8
    seed: int = 0
    noise: float = 0.0
    """Noise that the entries will carry, in root mean squares of them: the code leaves room for it."""
    verify: bool = False
    """Decode each code, without a prior, and make it again until it is certified."""

    def encoder(self) -> SuperpositionEncoder:
        """The code's encoder; raises `UserError` for numbers that no code has."""
        from lsm.codes.alphabet import Alphabet
        from lsm.codes.superposition import SuperpositionEncoder
        from lsm.lm.tokens import load_tokens

        alphabet = Alphabet(load_tokens(self.lm))
        return SuperpositionEncoder(alphabet.spec(dims=self.dims, bits=self.bits, seed=self.seed, noise=self.noise), alphabet)

    def fingerprint(self) -> dict[str, Any]:
        """What a corpus carries: the code's spec, the name of the LM whose tokenizer it has, and whether its codes were verified."""
        return self.encoder().spec.as_dict() | {"tokenizer": self.lm, "verified": self.verify}

    def load_coder(self, _: SentenceEncoder) -> Coder:
        """Called in each encoding worker; the frozen encoder is not needed."""
        from lsm.codes.storage import to_arrays

        encoder = self.encoder()
        if not self.verify:
            return lambda texts: to_arrays(encoder.encode(texts))
        from lsm.decode.code_reader import PLAIN, CodeReader
        from lsm.decode.verified import encode_verified

        reader = CodeReader(encoder)
        return lambda texts: to_arrays(encode_verified(encoder, reader, texts, PLAIN).codes)


@dataclass(frozen=True, kw_only=True)
class LearnedRecipe:
    """Which learned code to make, and how much of it; picklable, for the workers."""

    folder: Path
    dims: int | None = None
    """Leading dims that are kept; None = all."""
    lm: str | None = None
    """Where its LM lies, of which only tokenizer and embeddings are needed; None = the asset of the name that the code carries."""
    device: str = "cpu"

    def code(self, encoder: dict[str, Any]) -> LearnedCode:
        """The code; raises `UserError` for one of other vectors than those of `encoder`, or shorter than `dims`."""
        from lsm.corpus.format import require_same_space
        from lsm.decode.learned_code import LearnedCode

        code = LearnedCode.from_pretrained(self.folder)
        require_same_space(code.home.adapter.encoder, encoder, what=f"learned code {self.folder}")
        if self.dims is not None and not 1 <= self.dims <= code.settings.dims:
            raise UserError(f"--residual-dims {self.dims}: the learned code {self.folder} has 1 to {code.settings.dims}")
        return code

    def fingerprint(self, encoder: dict[str, Any]) -> dict[str, Any]:
        """What a corpus carries: which code, how many of its dims, and how they are stored."""
        from lsm.decode.learned_code import BOUND
        from lsm.lm.tokens import load_tokens

        code = self.code(encoder)
        load_tokens(self.lm or code.home.adapter.lm["name"])  # before a worker misses it
        whole = code.fingerprint()
        return whole | {"dims": self.dims or whole["dims"], "whole_dims": whole["dims"], "bits": 8, "scale": BOUND / 127}

    def load_coder(self, encoder: SentenceEncoder) -> Coder:
        """Called in each encoding worker."""
        import numpy as np

        from lsm.decode.learned_code_codec import LearnedCodec, to_int8
        from lsm.lm.frozen import FrozenLM

        code = self.code(encoder.fingerprint())
        lm = FrozenLM.load(self.lm or code.home.adapter.lm["name"], device=self.device)
        lm.drop_layers()
        codec = LearnedCodec(lm, code, getattr(encoder, "token_states", None))

        def coder(texts: Sequence[str]) -> CodeArrays:
            coded = codec.encode(texts)
            return {"residual": to_int8(coded.codes_BK[:, : self.dims]), "code_tokens": coded.n_tokens_B.clip(max=65_535).astype(np.uint16)}

        return coder


class CorpusCodes:
    """The sentences of a corpus, read from its residual codes: without a prior first, through the frozen LM where that is not enough."""

    def __init__(self, corpus: Corpus, *, lm: str | None = None, device: Any = "cpu") -> None:
        """Raises `UserError` when the corpus has no superposition code, another one than it was made with, or another tokenizer's."""
        from lsm.codes.alphabet import Alphabet
        from lsm.codes.spec import CodeSpec
        from lsm.codes.superposition import SuperpositionEncoder
        from lsm.corpus.verify import require_planned_code
        from lsm.decode.code_reader import CodeReader
        from lsm.lm.tokens import load_tokens

        if corpus.residual is None or corpus.residual.get("kind") == "learned":
            raise UserError(f"corpus {corpus.path} has no superposition codes; encode it with --residual superposition")
        require_planned_code(corpus)
        self.corpus, self.device = corpus, device
        self.spec = CodeSpec.from_dict(corpus.residual, origin=f"residual of corpus {corpus.path}")
        self.lm_name = lm or corpus.residual.get("tokenizer", DEFAULT_LM)
        self.reader = CodeReader(SuperpositionEncoder(self.spec, Alphabet(load_tokens(self.lm_name))), device=device)
        self.n_uncertified = self.n_through_lm = 0
        self._prior: Prior | None = None
        self._whole_shards: set[int] = set()

    def texts(self, doc: int) -> list[str]:
        """A document's sentences; what is not certified is counted and given as it was read."""
        from lsm.codes.storage import from_arrays
        from lsm.decode.code_reader import LADDER, PLAIN

        codes = from_arrays(self.spec, self.corpus.residual_arrays(doc))
        reading: Reading = self.reader.read(codes, PLAIN)
        texts, open_B = reading.texts, (~reading.certified_B).nonzero()[0]
        if len(open_B):
            self._require_whole(doc)  # before an LM is loaded for codes that nothing can read
            again = self.reader.read(codes.select(open_B), LADDER[1:], self._lm_prior())
            self.n_through_lm += len(open_B)
            self.n_uncertified += (n_failed := int((~again.certified_B).sum()))
            if n_failed and (self.corpus.residual or {}).get("verified"):
                raise UserError(
                    f"document {self.corpus.doc_ids[doc]!r} of {self.corpus.path}: {n_failed} sentences do not read back although their "
                    "codes were verified; the manifest's residual (seed, dims) or a shard was changed: see lsm inspect --verify"
                )
            for b, text in zip(open_B.tolist(), again.texts, strict=True):
                texts[b] = text
        return texts

    def _require_whole(self, doc: int) -> None:
        from lsm.corpus.verify import require_whole_shard

        shard = self.corpus.shard_of(doc)
        if shard not in self._whole_shards:
            require_whole_shard(self.corpus, shard)
            self._whole_shards.add(shard)

    def _lm_prior(self) -> Prior:
        if self._prior is None:
            from lsm.decode.code_prior import LMPrior
            from lsm.lm.frozen import FrozenLM

            self._prior = LMPrior(FrozenLM.load(self.lm_name, device=self.device))
        return self._prior
