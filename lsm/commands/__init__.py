"""The verbs of `lsm`, in the order in which a newcomer uses them; each lives in the module of its name in this folder.

Every module has `Options` (a dataclass on `lsm.config.CommonOptions`) and `run(options) -> dict`, the `results` of `--json`;
a key `exit_code` in it becomes the exit code (default 0).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One verb: the module with its `Options` and `run`, and the line that `lsm --help` shows."""

    module: str
    summary: str


VERBS: dict[str, Verb] = {
    "doctor": Verb("lsm.commands.doctor", "is this machine ready? versions, device, memory, cached assets"),
    "assets": Verb("lsm.commands.assets", "list, pull or verify the models and corpora that have a name here"),
    "encode-corpus": Verb("lsm.commands.encode_corpus", "documents -> a corpus of sentence vectors on disk (resumable)"),
    "inspect": Verb("lsm.commands.inspect", "what a corpus, run or adapter is, and whether it is whole"),
    "corpus": Verb("lsm.commands.corpus", "merge, split, filter, deduplicate or convert corpora without encoding again"),
    "pretrain": Verb("lsm.commands.pretrain", "train a latent transformer on a corpus (resumable)"),
    "evaluate": Verb("lsm.commands.evaluate", "next-sentence scoreboard of a run beside its controls"),
    "build-index": Verb("lsm.commands.build_index", "a phrase store (k-NN index) over a corpus"),
    "train-decoder": Verb("lsm.commands.train_decoder", "train an adapter that turns sentence vectors into text"),
    "generate": Verb("lsm.commands.generate", "continue a document: plan sentence vectors, then word them"),
    "invert": Verb("lsm.commands.invert", "sentence vectors -> text"),
    "roundtrip": Verb("lsm.commands.roundtrip", "text -> vector -> text: what is kept and what is lost"),
    "reason": Verb("lsm.commands.reason", "text -> one idea vector -> a frozen LM's text: train, eval, generate, interpolate, map"),
    "cram": Verb("lsm.commands.cram", "how many tokens memory vectors of a frozen LM can hold, word for word (resumable)"),
    "compress": Verb("lsm.commands.compress", "long prompts as few soft tokens for a frozen LM, beside honest controls"),
    "bench": Verb("lsm.commands.bench", "side by side in one run: what token-level and latent models cost, how fast encoders are"),
}
