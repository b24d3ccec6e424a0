"""`lsm invert`: sentence vectors → text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from lsm.commands.decoder_options import DecoderOptions
from lsm.decode.load import DecoderName


@dataclass(kw_only=True)
class Options(DecoderOptions):
    """Word the vectors of a .npy file, or the vector of a text."""

    vectors: Positional[Path | None] = None
    """A .npy file with vectors [n, D] (or one, [D]) of the encoder."""
    text: str | None = None
    """Encode this text and word its vector, instead of a file."""
    encoder: str = "minilm"
    """Encoder that the vectors come from; it also judges what comes back."""
    decoder: DecoderName = "prefix"
    """retrieval: nearest known sentence; prefix: LM with an adapter; corrector: that, then corrected (--corrector);
    inversion: search by re-encoding; guided: the same without adapter;
    vec2text: published checkpoints of Morris et al. (2023) for one encoder each."""
    limit: int | None = None
    """Word only the first so many vectors."""


def run(options: Options) -> dict[str, Any]:
    """Print the sentences, one a line, and on stderr how near their re-encoding comes."""

    from lsm.encode.encoder import load_encoder
    from lsm.errors import UserError
    from lsm.progress import say
    from lsm.provenance import choose_device

    if (options.vectors is None) == (options.text is None):
        raise UserError("invert: give either a .npy FILE or --text TEXT")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: must be at least 1")
    device, _ = choose_device(options.device)
    encoder = load_encoder(options.encoder, device=options.device)
    z_BD = encoder.encode([options.text]).vectors if options.text is not None else _read_vectors(options.vectors, options.limit)
    from lsm.bench.roundtrip import cosines, encode_written
    from lsm.decode.vectors import check_vectors

    check_vectors(z_BD, encoder.dim, encoder.fingerprint(), refuse_zeros=True)
    (decoder,) = options.source(encoder, device).load([options.decoder])
    texts = decoder.decode(z_BD, seed=options.seed)
    cosine_B = cosines(encode_written(lambda some: encoder.encode(list(some)).vectors, texts), z_BD)
    for text in texts:
        print(" ".join(text.split()))
    say(f"cosine of the re-encoding: mean {cosine_B.mean():.3f}, lowest {cosine_B.min():.3f}", quiet=options.quiet)
    rows = [{"text": text, "cosine": round(float(cosine), 4)} for text, cosine in zip(texts, cosine_B, strict=True)]
    return {
        "decoder": decoder.name,
        "encoder": options.encoder,
        "n": len(rows),
        "encoder_calls": decoder.encoder_calls_per_sentence,
        "rows": rows,
    }


def _read_vectors(path: Path | None, limit: int | None) -> Any:
    import numpy as np

    from lsm.errors import UserError

    assert path is not None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a .npy file of numbers ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating) or not array.size:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"{path} holds {found}; floats of shape [n, D] are needed")
    return np.atleast_2d(np.asarray(array[:limit] if array.ndim == 2 else array, dtype=np.float32))
