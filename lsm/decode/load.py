"""Decoders by name, as the command line knows them; each loads only what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lsm.errors import UserError
from lsm.progress import say

if TYPE_CHECKING:
    import torch

    from lsm.decode.correcting import Writer
    from lsm.decode.decoders import Decoder, PrefixDecoder
    from lsm.decode.lexicon import Lexicon
    from lsm.decode.phrase_store import PhraseStore
    from lsm.decode.vec2text import Vec2TextDecoder
    from lsm.decode.vectors import Encode
    from lsm.lm.frozen import FrozenLM

DecoderName = Literal["retrieval", "prefix", "corrector", "inversion", "guided", "vec2text"]
DECODERS: tuple[str, ...] = get_args(DecoderName)
DEFAULT_LM = "smollm2-135m-instruct"


@dataclass(kw_only=True)
class DecoderSource:
    """Where the decoders for one encoder's vectors get their parts."""

    encoder: dict[str, Any]
    """Fingerprint of the encoder whose vectors are decoded."""
    device: torch.device | str = "cpu"
    index: Path | None = None
    """A phrase store's file; its phrases are taken from FILE.phrases, where that exists."""
    corpus: Path | None = None
    """A corpus to index in memory, where no `index` is given."""
    adapter: str | None = None
    """Adapter folder or shipped name; None = the first shipped one for the encoder."""
    lm: str | None = None
    """Where the adapter's LM lies; None = the asset of the name that the adapter carries. For `guided` any LM."""
    corrector: Path | None = None
    """Folder of a corrector, for `corrector`; `inversion` then corrects too."""
    vec2text: str = "jxm/gtr__nq__32"
    """Folder or hub id of the hypothesis checkpoint, for `vec2text`."""
    vec2text_corrector: str = "jxm/gtr__nq__32__correct"
    """Folder or hub id of its corrector; `none` leaves the hypothesis as it is."""
    encode: Encode | None = None
    """Re-encodes texts, for `corrector`, `inversion`, `guided` and `vec2text`."""
    encoder_calls: int = 64
    """Most texts that `corrector`, `inversion`, `guided` and `vec2text` encode for one vector."""
    beam: int = 4
    """Hypotheses that `corrector` and `vec2text` keep from step to step; with 1 they write one text a step, the most probable."""
    quiet: bool = False
    _store: PhraseStore | None = field(default=None, init=False, repr=False)
    _phrases: PhraseStore | None = field(default=None, init=False, repr=False)
    _lexicon: tuple[str, Lexicon] | None = field(default=None, init=False, repr=False)

    @property
    def has_store(self) -> bool:
        """Whether there is a phrase store to search."""
        return self.index is not None or self.corpus is not None

    def load(self, names: Sequence[str]) -> list[Decoder]:
        """The decoders of these names, in their order; a store or LM that two of them need is loaded once.

        Raises:
            UserError: unknown name, a part that is not given, or one made for another encoder.
        """
        from lsm.decode.correcting import CorrectorDecoder
        from lsm.decode.decoders import RetrievalDecoder
        from lsm.decode.inversion import InversionDecoder, Parts

        unknown = [name for name in names if name not in DECODERS]
        if unknown or not names:
            raise UserError(f"--decoder {','.join(unknown) or '(nothing)'}: choose from {', '.join(DECODERS)}")
        for option, value in (("--encoder-calls", self.encoder_calls), ("--beam", self.beam)):
            if value < 1:
                raise UserError(f"{option} {value}: must be at least 1")
        if "corrector" in names and self.corrector is None:
            raise UserError("--decoder corrector: give --corrector RUN/final, from lsm train-decoder --config configs/corrector.yaml")
        searching = {"inversion", "guided"} & set(names)
        store = self.store() if "retrieval" in names or (searching and self.has_store) else None
        prefix = self.prefix() if {"prefix", "corrector"} & set(names) or ("inversion" in names and self.has_adapter()) else None
        writer = self._writer() if "corrector" in names or ("inversion" in names and self.corrector) else None
        if prefix and writer and (learned_from := writer.corrector.hypotheses_of) not in ("", prefix.adapter.sha256()):
            say(
                f"the corrector learned from hypotheses of another adapter (sha256 {learned_from[:12]}): give that one with --adapter",
                quiet=self.quiet,
            )
        decoders: list[Decoder] = []
        for name in names:
            if name == "retrieval":
                assert store is not None
                decoders.append(RetrievalDecoder(store))
            elif name == "prefix":
                assert prefix is not None
                decoders.append(prefix)
            elif name == "corrector":
                assert prefix is not None and writer is not None and self.encode is not None
                samples = 1 if self.beam == 1 else 2
                decoders.append(
                    CorrectorDecoder(writer, prefix, self.encode, encoder_calls=self.encoder_calls, beam=self.beam, samples=samples)
                )
            elif name == "vec2text":
                decoders.append(self._vec2text())
            else:
                assert self.encode is not None, f"{name} needs an encoder to judge its hypotheses"
                own = prefix if name == "inversion" else None
                lm = own.lm if own else self._plain_lm(prefix)
                parts = Parts(
                    encoder=self.encoder, encode=self.encode, lm=lm, lexicon=self._lexicon_of(lm),
                    store=store, phrases=self.phrases(), prefix=own, writer=writer if name == "inversion" else None,
                )  # fmt: skip
                decoders.append(InversionDecoder(parts, name=name, encoder_calls=self.encoder_calls))
        return decoders

    def store(self) -> PhraseStore:
        """The phrase store of `index`, or one built in memory from `corpus`; loaded once."""
        if self._store is None:
            self._store = self._load_store()
        return self._store

    def _load_store(self) -> PhraseStore:
        from lsm.corpus.reader import Corpus
        from lsm.decode.phrase_store import PhraseStore

        if self.index is not None:
            store = PhraseStore.open(self.index)
            store.require_encoder(self.encoder, what=f"phrase store {self.index}")
            return store
        if self.corpus is None:
            raise UserError("--decoder retrieval: give --index FILE (from lsm build-index) or --corpus DIR to take sentences from")
        corpus = Corpus.open(self.corpus)
        corpus.require_encoder(self.encoder)
        return PhraseStore.from_corpus(corpus, quiet=self.quiet)

    def prefix(self) -> PrefixDecoder:
        """The adapter and the LM that it speaks through."""
        from lsm.decode.adapter import PrefixAdapter
        from lsm.decode.decoders import PrefixDecoder
        from lsm.decode.shipped import find_adapter
        from lsm.lm.frozen import FrozenLM

        adapter = PrefixAdapter.from_pretrained(find_adapter(self.adapter, encoder=self.encoder))
        return PrefixDecoder(FrozenLM.load(self.lm or adapter.home.lm["name"], device=self.device), adapter)

    def _writer(self) -> Writer:
        """The corrector, with an LM of its own that carries its LoRA layers."""
        from lsm.corpus.format import require_same_space
        from lsm.decode.correcting import Writer
        from lsm.decode.corrector import Corrector
        from lsm.lm.frozen import FrozenLM

        assert self.corrector is not None
        corrector = Corrector.from_pretrained(self.corrector)
        require_same_space(corrector.home.encoder, self.encoder, what=f"corrector {self.corrector}")
        return Writer.of(FrozenLM.load(self.lm or corrector.home.lm["name"], device=self.device), corrector)

    def _vec2text(self) -> Vec2TextDecoder:
        """Published checkpoints and, by a round trip, the certainty that they invert this encoder."""
        from lsm.decode.vec2text import load_vec2text, within

        assert self.encode is not None, "vec2text needs an encoder to judge its hypotheses"
        corrector = None if self.vec2text_corrector == "none" else self.vec2text_corrector
        steps, beam = within(self.encoder_calls, self.beam)
        return load_vec2text(
            self.vec2text, corrector, self.encode, self.encoder, device=self.device, steps=steps, beam=beam, quiet=self.quiet
        )

    def has_adapter(self) -> bool:
        """Whether an adapter was named, or one for the encoder is shipped."""
        from lsm.decode.shipped import shipped_adapter

        return self.adapter is not None or shipped_adapter(self.encoder) is not None

    def _plain_lm(self, prefix: PrefixDecoder | None) -> FrozenLM:
        """An LM without LoRA layers: the adapter's, where that has none."""
        from lsm.lm.frozen import FrozenLM

        if prefix is not None and not prefix.adapter.settings.lora_rank:
            return prefix.lm
        return FrozenLM.load(self.lm or DEFAULT_LM, device=self.device)

    def _lexicon_of(self, lm: FrozenLM) -> Lexicon:
        from lsm.decode.lexicon import Lexicon

        assert self.encode is not None
        if self._lexicon is None or self._lexicon[0] != lm.sha256:
            self._lexicon = lm.sha256, Lexicon.of(lm, self.encode, self.encoder)
        return self._lexicon[1]

    def phrases(self) -> PhraseStore | None:
        """The phrases beside `index`, where there are any; loaded once."""
        from lsm.decode.phrase_store import PhraseStore, phrases_beside

        path = phrases_beside(self.index) if self.index else None
        if self._phrases is None and path is not None and path.exists():
            self._phrases = PhraseStore.open(path)
            self._phrases.require_encoder(self.encoder, what=f"phrase store {path}")
        return self._phrases
