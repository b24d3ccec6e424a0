"""Decoders by name, as the command line knows them; each loads only what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm.errors import UserError

if TYPE_CHECKING:
    import torch

    from lsm.decode.decoders import Decoder, Encode, PrefixDecoder
    from lsm.decode.phrase_store import PhraseStore

DECODERS = ("retrieval", "prefix", "inversion")


@dataclass(kw_only=True)
class DecoderSource:
    """Where the decoders for one encoder's vectors get their parts."""

    encoder: dict[str, Any]
    """Fingerprint of the encoder whose vectors are decoded."""
    device: torch.device | str = "cpu"
    index: Path | None = None
    """A phrase store's file."""
    corpus: Path | None = None
    """A corpus to index in memory, where no `index` is given."""
    adapter: str | None = None
    """Adapter folder or shipped name; None = the first shipped one for the encoder."""
    lm: str | None = None
    """Where the adapter's LM lies; None = the asset of the name that the adapter carries."""
    encode: Encode | None = None
    """Re-encodes texts, for `inversion`."""
    quiet: bool = False
    _store: PhraseStore | None = field(default=None, init=False, repr=False)

    @property
    def has_store(self) -> bool:
        """Whether there is a phrase store to search."""
        return self.index is not None or self.corpus is not None

    def load(self, names: Sequence[str]) -> list[Decoder]:
        """The decoders of these names, in their order; a store or LM that two of them need is loaded once.

        Raises:
            UserError: unknown name, a part that is not given, or one made for another encoder.
        """
        from lsm.decode.decoders import InversionDecoder, RetrievalDecoder

        unknown = [name for name in names if name not in DECODERS]
        if unknown or not names:
            raise UserError(f"--decoder {','.join(unknown) or '(nothing)'}: choose from {', '.join(DECODERS)}")
        store = self.store() if "retrieval" in names or ("inversion" in names and self.has_store) else None
        prefix = self.prefix() if {"prefix", "inversion"} & set(names) else None
        decoders: list[Decoder] = []
        for name in names:
            if name == "retrieval":
                assert store is not None
                decoders.append(RetrievalDecoder(store))
            elif name == "prefix":
                assert prefix is not None
                decoders.append(prefix)
            else:
                assert prefix is not None and self.encode is not None, "inversion needs an encoder to judge its hypotheses"
                decoders.append(InversionDecoder(prefix, store, self.encode))
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
