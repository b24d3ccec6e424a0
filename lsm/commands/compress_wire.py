"""`lsm compress pack|ask`: texts as one file of soft tokens, and answers from that file alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm.errors import UserError

if TYPE_CHECKING:
    from lsm.commands.compress import Options
    from lsm.commands.compress_rows import Loaded


def write(options: Options) -> dict[str, Any]:
    """Pack the texts of question files, each once."""
    import zstandard

    from lsm.codes.soft_file import Wire, pack
    from lsm.commands.compress_rows import load, send
    from lsm.files import atomic_write
    from lsm.text.questions import read_questions

    assert options.out is not None
    loaded = load(Path(options.inputs[0]), device=options.device)
    ratio = options.ratio or loaded.settings.ratios[0]
    questions = read_questions(options.inputs[1:])
    if not questions:
        raise UserError(f"{', '.join(options.inputs[1:])}: no text to pack (rows without an answer do not count); give others")
    texts = send(loaded, questions, ratio)
    data = pack(
        Wire(
            options.bits, options.group, ratio, _lm_sha256(loaded), loaded.sha256,
            [codes.cpu().numpy() for codes, _ in texts.values()], [head for _, head in texts.values()],
        )
    )  # fmt: skip
    with atomic_write(options.out) as handle:
        handle.write(data)
    utf8 = sum(len(text.encode()) for text in texts)
    zstd = len(zstandard.ZstdCompressor(level=19).compress("\n".join(texts).encode()))
    print(f"{options.out}: {len(texts)} texts, {len(data):,} bytes; their UTF-8 {utf8:,} bytes, zstd of all together {zstd:,}")
    return {"texts": len(texts), "wire_bytes": len(data), "utf8_bytes": utf8, "zstd_bytes": zstd, "ratio": ratio, "bits": options.bits}


def ask(options: Options) -> dict[str, Any]:
    """Answer one question of each packed text; the texts themselves are not at hand."""
    import torch

    from lsm.codes.soft_file import unpack
    from lsm.commands.compress_rows import load
    from lsm.lm.contexts import read_preamble, write_answers
    from lsm.lm.soft import read_soft
    from lsm.text.questions import Question

    assert options.wire is not None and options.question is not None
    if not options.wire.is_file():
        raise UserError(f"--wire {options.wire} does not exist; write it with lsm compress pack")
    wire = unpack(options.wire.read_bytes(), origin=str(options.wire))
    loaded = load(Path(options.inputs[0]), device=options.device)
    if wire.adapter_sha256 != loaded.sha256:
        raise UserError(
            f"--wire {options.wire} was packed by compressor {wire.adapter_sha256[:16]}, {options.inputs[0]} is {loaded.sha256[:16]}"
        )
    if wire.lm_sha256 != _lm_sha256(loaded):
        raise UserError(f"--wire {options.wire} is for an LM of sha256 {wire.lm_sha256[:16]}, not {loaded.lm.name}; pack it again")
    answers = []
    prompts = loaded.prompts.questions([Question("", "", "", options.question, ("",))])
    with torch.no_grad(), loaded.silent():
        preamble = read_preamble(loaded.lm, loaded.prompts.preamble)
        for code, head in zip(wire.codes, wire.heads, strict=True):
            soft = loaded.compressor.receive([torch.from_numpy(code).to(loaded.lm.device)], [head], loaded.lm)
            read = read_soft(loaded.lm, soft, [0], preamble)
            answers += write_answers(loaded.lm, read, prompts, max_new_tokens=24)
            print(answers[-1])
    return {"answers": answers, "ratio": wire.ratio, "bits": wire.bits}


def _lm_sha256(loaded: Loaded) -> str:
    """As it stands in the file's header: zeros for the built-in stub."""
    return loaded.lm.sha256 if len(loaded.lm.sha256) == 64 else "0" * 64
