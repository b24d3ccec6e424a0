"""The data card of a corpus on the Hugging Face hub: what it is, whose vectors, how many, under which licence, how to load it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from lsm.corpus import format as layout
from lsm.corpus.reader import Corpus

UNKNOWN = "unknown"
_ENCODER_KEYS = ("name", "revision", "sha256", "pooling", "normalised", "dtype", "dim", "max_tokens", "context_sentences")


def data_card(corpus: Corpus, repository: str, licence: str = UNKNOWN) -> str:
    """Markdown under a YAML head, as the hub reads it.

    Args:
        licence: of the texts: an identifier that the hub knows (`cc-by-4.0`), or anything else in words.
    """
    manifest = corpus.manifest
    head = yaml.safe_dump(_head(corpus, licence), sort_keys=False, allow_unicode=True)
    truncated = manifest["n_truncated"] / max(corpus.n_sentences, 1)
    counts = {
        "documents": f"{corpus.n_documents:,}",
        "sentences": f"{corpus.n_sentences:,} in {corpus.n_shards:,} shards",
        "characters": f"{manifest['n_characters']:,}",
        "tokens that the encoder read": f"{manifest['n_tokens']:,}",
        "sentences that the encoder cut": f"{manifest['n_truncated']:,} ({truncated:.2%}): the end of their text is not in their vectors",
        "text": "kept beside the vectors" if corpus.keeps_text else "dropped: it is in the residual codes alone",
        "vectors": ", ".join("{name} {dim} × {dtype}".format(**part) for part in corpus.parts()),
        "residual code": layout.residual_line(corpus.residual) if corpus.residual else "none",
        "sentences cut by": ", ".join(f"{key} {value}" for key, value in manifest["segmentation"].items()) or UNKNOWN,
        "fingerprint": f"`{corpus.fingerprint}`",
    }
    encoder = {key: f"`{corpus.encoder[key]}`" for key in _ENCODER_KEYS if corpus.encoder.get(key) is not None}
    name = repository.rpartition("/")[2]
    return f"""---
{head}---
# {name}

Documents as sentences, each with its vector by a frozen encoder: a corpus of `lsm`, the toolkit for language models on sentence vectors.
Licence of the texts: {licence}.

{_table("", "", counts)}

## Whose vectors
Vectors of two encoders do not mix. `lsm` refuses a model or corpus whose fingerprint differs.

{_table("encoder", "", encoder)}

## How to load it

    lsm corpus pull {repository} {name}
    lsm inspect {name} --verify

```python
from lsm.corpus.reader import Corpus

corpus = Corpus.open("{name}")
corpus.vectors(0)  # float16 [sentences, {corpus.dim}] of the first document
{"corpus.texts(0)" if corpus.keeps_text else "corpus.sentences(0)"}
```

`shards/*/sentences.parquet` and `documents.parquet` are plain parquet, `shards/*/*.npy` plain NumPy: row i of a shard's vectors belongs to
row i of its sentences.
"""


def _head(corpus: Corpus, licence: str) -> dict[str, Any]:
    known = re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence) is not None
    head: dict[str, Any] = {"license": licence} if known else {"license": "other", "license_name": licence}
    language = corpus.manifest["segmentation"].get("language")
    if isinstance(language, str) and len(language) == 2:
        head["language"] = [language]
    files = {"sentences": f"{layout.SHARDS}/*/{layout.SENTENCES}", "documents": layout.DOCUMENTS}
    head["tags"] = ["lsm", "sentence-vectors", "embeddings"]
    head["configs"] = [{"config_name": name, "data_files": path} for name, path in files.items()]
    return head


def _table(left: str, right: str, rows: dict[str, str]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|", *(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items())]
    return "\n".join(lines)
