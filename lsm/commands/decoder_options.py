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
    vec2text: str = "jxm/gtr__nq__32"
    """Folder or hub id of a published vec2text hypothesis checkpoint (vec2text); --encoder must be the one it was trained for."""
    vec2text_corrector: str = "jxm/gtr__nq__32__correct"
    """Folder or hub id of the corrector that belongs to it (vec2text); none = the hypothesis alone."""
    beam: int = 4
    """Hypotheses that corrector and vec2text keep from step to step."""
    encoder_calls: int = 64
    """Most texts that corrector, inversion, guided and vec2text encode for one vector: more calls, nearer texts."""

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
            vec2text=self.vec2text,
            vec2text_corrector=self.vec2text_corrector,
            encode=lambda texts: encoder.encode(texts).vectors,
            encoder_calls=self.encoder_calls,
            beam=self.beam,
            quiet=self.quiet,
        )
