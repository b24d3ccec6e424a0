"""Options of the verbs that turn vectors into text: where the decoders' parts come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm.config import CommonOptions

if TYPE_CHECKING:
    from lsm.decode.load import DecoderSource
    from lsm.encode.encoder import SentenceEncoder


@dataclass(kw_only=True)
class DecoderOptions(CommonOptions):
    """What `generate`, `invert` and `roundtrip` share."""

    corpus: Path | None = None
    """Corpus whose sentences the phrase store holds, indexed in memory (retrieval, inversion, guided)."""
    index: Path | None = None
    """Phrase store from lsm build-index, instead of --corpus; phrases beside it are stitched with (inversion, guided)."""
    adapter: str | None = None
    """Adapter folder or name of a shipped one (prefix, inversion); default: the shipped one for the encoder."""
    lm: str | None = None
    """Where the adapter's LM lies, when it is not the asset of its name; for guided any LM, default smollm2-135m-instruct."""
    corrector: Path | None = None
    """Folder of a corrector (from train-decoder); inversion then uses it too."""
    beam: int = 4
    """Hypotheses that corrector keeps from step to step."""
    encoder_calls: int = 64
    """Most texts that corrector, inversion and guided encode for one vector: more calls, nearer texts."""

    def source(self, encoder: SentenceEncoder, device: Any) -> DecoderSource:
        """The decoders' parts for vectors of `encoder`, which also judges hypotheses."""
        from lsm.decode.load import DecoderSource

        return DecoderSource(
            encoder=encoder.fingerprint(),
            device=device,
            index=self.index,
            corpus=self.corpus,
            adapter=self.adapter,
            lm=self.lm,
            corrector=self.corrector,
            encode=lambda texts: encoder.encode(texts).vectors,
            encoder_calls=self.encoder_calls,
            beam=self.beam,
            quiet=self.quiet,
        )
