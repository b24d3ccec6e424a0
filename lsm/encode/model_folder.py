"""What a sentence-transformers or transformers folder says about itself, read from its JSON files without loading the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsm.errors import UserError
from lsm.files import fingerprint, read_json, sha256_file

_DECODERS = ("t5", "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi", "phi3")
"""Model types whose pooling or attention our fast path does not reproduce: sentence-transformers runs them."""


@dataclass(frozen=True)
class ModelFolder:
    """The facts that the fast path needs, and the reason when it cannot be taken."""

    path: Path
    name: str
    sha256: str
    pooling: str
    normalised: bool
    dim: int
    max_tokens: int
    pad_id: int
    why_not_fast: str | None

    @classmethod
    def read(cls, path: Path, name: str) -> ModelFolder:
        """Read `modules.json` and what it points to; a plain transformers folder means mean pooling, as sentence-transformers has it.

        Raises:
            UserError: no `config.json`, or a broken JSON file.
        """
        modules = read_json(path / "modules.json") if (path / "modules.json").exists() else None
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules] if modules else ["Transformer", "Pooling"]
        paths = [path / str(module["path"]) for module in modules] if modules else [path, path]
        root = paths[0]
        if not (root / "config.json").exists():
            raise UserError(f"--encoder {name}: no config.json in its folder; name a sentence-transformers or transformers model")
        config = read_json(root / "config.json")
        known = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        problems = [] if kinds in known else [f"modules {' + '.join(kinds)}"]
        pooling = _pooling(paths[1]) if modules and len(paths) > 1 else "mean"
        if pooling not in ("mean", "cls"):
            problems.append(f"{pooling} pooling")
        if config.get("model_type") in _DECODERS or config.get("auto_map"):
            problems.append(f"model type {config.get('model_type')}")
        if not (root / "tokenizer.json").exists():
            problems.append("no tokenizer.json")
        limits = _json(root / "sentence_bert_config.json")
        if set(limits) - {"max_seq_length", "do_lower_case"} or limits.get("do_lower_case"):
            problems.append("sentence_bert_config.json asks for more than a length")
        if _json(path / "config_sentence_transformers.json").get("default_prompt_name"):
            problems.append("a default prompt")
        return cls(
            path=path,
            name=name,
            sha256=_identity(path),
            pooling=pooling,
            normalised="Normalize" in kinds,
            dim=int(config.get("hidden_size") or config.get("dim") or 0),
            max_tokens=_max_tokens(root, config, limits),
            pad_id=int(config.get("pad_token_id") or 0),
            why_not_fast="; ".join(problems) or None,
        )

    @property
    def root(self) -> Path:
        """Where the transformer itself lies (older folders keep it in `0_Transformer`)."""
        modules = self.path / "modules.json"
        return self.path / str(read_json(modules)[0]["path"]) if modules.exists() else self.path

    def fingerprint(self, dtype: str) -> dict[str, Any]:
        """The encoder fingerprint that a corpus carries; `sha256` is over the files that make the vectors, wherever they came from."""
        return {
            "name": self.name, "revision": None, "sha256": self.sha256, "pooling": self.pooling, "normalised": self.normalised,
            "dtype": dtype, "dim": self.dim, "max_tokens": self.max_tokens,
        }  # fmt: skip

    def fits(self) -> Callable[[str], bool]:
        """A check whether a text stays within the token limit; it tokenises only texts that are long enough to be in doubt."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.root / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()

        def fits(text: str) -> bool:
            # A token stands for at least one byte; the margin is for special tokens.
            return len(text.encode()) + 8 <= self.max_tokens or len(tokenizer.encode(text).ids) <= self.max_tokens

        return fits


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _pooling(folder: Path) -> str:
    config = _json(folder / "config.json")
    if "pooling_mode" in config:
        return str(config["pooling_mode"])
    chosen = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key, on in config.items() if on is True]
    chosen = [mode for mode in chosen if mode != "include_prompt"]
    return "+".join(chosen) or "mean"


def _max_tokens(root: Path, config: dict[str, Any], limits: dict[str, Any]) -> int:
    positions = config.get("max_position_embeddings")
    # RoBERTa-like models count positions from pad_token_id + 1.
    offset = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    candidates = [limits.get("max_seq_length"), _json(root / "tokenizer_config.json").get("model_max_length")]
    candidates.append(int(positions) - offset if positions else None)
    return min(int(candidate) for candidate in [*candidates, 8192] if candidate)


def _identity(path: Path) -> str:
    """One hash over weights, tokenizer and the JSON files that decide how they are used; cards and other formats do not count."""
    kept = [file for file in path.rglob("*") if file.is_file() and _counts(file.relative_to(path))]
    return fingerprint({file.relative_to(path).as_posix(): sha256_file(file) for file in sorted(kept)})


def _counts(file: Path) -> bool:
    if any(part.startswith(".") or part in ("onnx", "openvino") for part in file.parts):
        return False
    names = ("config.json", "modules.json", "tokenizer.json", "sentence_bert_config.json", "sentencepiece.bpe.model", "vocab.txt")
    return file.suffix == ".safetensors" or file.name in names
