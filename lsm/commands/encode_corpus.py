"""`lsm encode-corpus`: documents → a corpus of sentence vectors; interrupt it and run it again as you like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from lsm.commands.executor_options import ExecutorOptions
from lsm.commands.residual import CodeRecipe, LearnedRecipe, Residual
from lsm.decode.load import DEFAULT_LM
from lsm.encode.settings import EncodeSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lsm.encode.cut import DocumentLike
    from lsm.encode.encoder import EncoderInfo
    from lsm.encode.run import EncodeJob


@dataclass(kw_only=True)
class Options(ExecutorOptions):
    """Encode documents into a corpus of sentence vectors."""

    inputs: Positional[tuple[str, ...]]
    """Files, folders or globs of .txt .md .jsonl (each also .gz .zst .bz2 .xz) .parquet, here or behind a URL (s3://, https:// …); a
    recipe name, or hf:DATASET[:SPLIT]."""
    out: Path
    """Folder of the corpus."""
    encoder: str = "minilm"
    """Asset name, hub id or folder of a sentence-transformers or transformers model; stub = a hash, for trying."""
    residual: Residual = "none"
    """Residual code to store beside the semantic vectors. superposition gives every sentence back word for word, certified; it is larger
    than its text, neither compression nor a space to plan in. learned is a trained, nested code that holds the first words of a sentence
    (the shipped one 24 tokens) for the frozen LM to read; nothing certifies it."""
    residual_dims: int | None = None
    """Entries of a superposition code, of which a long sentence takes several (default: 256), or how many of a learned code's dims to
    keep, from the first on (default: all)."""
    learned_code: Path | None = None
    """Folder of the learned code; default: the shipped one for the encoder."""
    residual_bits: int = CodeRecipe.bits
    """Bits of an entry of a superposition code: 8, 6 or 4."""
    residual_seed: int = CodeRecipe.seed
    """Seed of a superposition code's signs (--seed leaves the corpus alone)."""
    residual_noise: float = CodeRecipe.noise
    """Noise that the entries will carry (a channel, a model that predicts them), in root mean squares of them: superposition codes leave
    room for it."""
    residual_lm: str = DEFAULT_LM
    """LM whose tokenizer a superposition code uses; its weights are not needed. Of a learned code: where its LM lies."""
    verify_codes: bool = False
    """Decode every superposition code when it is made, without an LM, and make it again until it gives its sentence back."""
    drop_text: bool = False
    """Keep no sentence as text, only its residual code; needs --verify-codes."""
    workers: int | None = None
    """Encoding processes (of each task); default: one a core, two on a GPU, one for each task of slurm and ray. The bytes do not depend
    on it."""
    limit_documents: int | None = None
    """Read no more than so many documents."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto goes on with an interrupted run, never refuses a folder that holds one, must refuses one that does not."""
    append: bool = False
    """Add the documents that a finished corpus does not hold yet."""
    language: str = "en"
    """Language of the sentence segmentation (ISO 639-1)."""
    segmenter: Literal["sentencex", "sat"] = "sentencex"
    """Who finds the sentence boundaries; sat needs the extra lsm[sat]."""
    cap_characters: int = EncodeSettings.cap_characters
    """Longer sentences are split at clause boundaries."""
    context_sentences: int = EncodeSettings.context_sentences
    """Sentences before each, of its document, that the encoder reads with it; only its own tokens make its vector. Such vectors hold some
    of what was read (docs/spaces.md). They can be trained on and judged; no prompt can be encoded so, no shipped decoder words them."""
    shard_rows: int = EncodeSettings.shard_rows
    """Sentences a shard holds."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; auto = bf16 where the hardware multiplies it natively."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """Who computes the network: torch, or openvino (extra lsm[openvino], CPU, float32). auto = the one that the corpus was begun with, else
    openvino where it is installed and the CPU has no bf16, else torch. Their vectors differ in the seventh digit; a corpus keeps to one."""


def run(options: Options) -> dict[str, Any]:
    """Encode and return the counts."""
    from functools import partial

    from lsm.encode.run import encode_corpus

    options.require_fitting()
    if options.executor == "local":
        results = encode_corpus(*prepared(options))
    else:
        from lsm.commands.encode_tasks import run_tasks, submit

        if options.executor == "slurm":
            results = submit(options, partial(prepared, options), summary)
            print(_submitted(results))
            return results
        results = run_tasks(options, partial(prepared, options))
    print(summary(results))
    return results


def prepared(options: Options) -> tuple[EncodeJob, Iterable[DocumentLike]]:
    """The job that the options describe, and its documents, which are read as they are asked for."""
    from functools import partial

    from lsm.encode.encoder import encoder_info
    from lsm.encode.plan import RunPlan, Stage, input_names
    from lsm.encode.run import EncodeJob
    from lsm.errors import UserError
    from lsm.progress import say
    from lsm.text.readers import input_bytes, iter_documents
    from lsm.text.segment import segment

    if not options.inputs:
        raise UserError("encode-corpus: name at least one INPUT (file, folder, glob, URL, recipe or hf:DATASET)")
    settings = EncodeSettings(
        language=options.language, segmenter=options.segmenter, cap_characters=options.cap_characters,
        context_sentences=options.context_sentences, shard_rows=options.shard_rows,
    )  # fmt: skip
    begun = RunPlan.load(options.out) if options.engine == "auto" else None
    engine = options.engine if begun is None else begun.encoder.get("engine", "torch")
    info = encoder_info(options.encoder, device=options.device, precision=options.precision, engine=engine)
    if settings.context_sentences:
        if options.residual == "learned":
            raise UserError("--context-sentences: learned codes are made for sentences read alone; leave out one of the two")
        if not info.reads_context:
            raise UserError(
                f"--context-sentences: encoder {info.name} reads each text by itself; name a transformer with mean pooling, such as minilm"
            )
        info = replace(info, fingerprint=info.fingerprint | {"context_sentences": settings.context_sentences})
    recipe, residual = _residual(options, info)
    if options.device not in ("auto", info.device):
        say(f"--device {options.device} is ignored: encoder {options.encoder} runs on {info.device} ({info.why})")
    how = {"language": settings.language, "cap_characters": settings.cap_characters, "fits": info.fits}
    if settings.segmenter != "sentencex":
        how["segmenter"] = settings.segmenter
    job = EncodeJob(
        out=options.out,
        info=info,
        plan=RunPlan.of(info.fingerprint, settings, residual=residual, keep_text=not options.drop_text),
        load_coder=recipe.load_coder if recipe else None,
        stage=Stage(input_names(options.inputs), options.limit_documents, 0),
        segment=partial(segment, **how),
        precision=options.precision,
        workers=options.workers or _workers_of_task(options, info),
        resume=options.resume,
        append=options.append,
        expected_bytes=input_bytes(options.inputs),
        quiet=options.quiet,
    )
    return job, iter_documents(options.inputs, limit=options.limit_documents)


def _workers_of_task(options: Options, info: EncoderInfo) -> int | None:
    """None = all the cores are this process's own."""
    if options.executor == "local" or info.device != "cpu":
        return None
    if options.executor == "datatrove-local":
        import os

        return max(1, (os.cpu_count() or 1) // options.tasks)
    return 1


def _residual(options: Options, info: EncoderInfo) -> tuple[CodeRecipe | LearnedRecipe | None, dict[str, Any] | None]:
    """Who makes the residual codes, and what the corpus says of them."""
    from lsm.errors import UserError
    from lsm.progress import say

    if options.drop_text and not (options.verify_codes and options.residual == "superposition"):
        raise UserError(
            "--drop-text: text is dropped only where codes are known to give it back; add --residual superposition --verify-codes"
        )
    if options.learned_code is not None and options.residual != "learned":
        raise UserError(f"--learned-code {options.learned_code} needs --residual learned")
    if options.residual == "none":
        if options.verify_codes:
            say("--verify-codes is ignored: --residual is none")
        return None, None
    if options.residual == "learned":
        from lsm.decode.shipped import find_learned_code

        alien = {name: getattr(CodeRecipe, name) for name in ("bits", "seed", "noise")}
        set_here = [f"--residual-{name}" for name, default in alien.items() if getattr(options, f"residual_{name}") != default]
        if set_here := [*set_here, *(["--verify-codes"] if options.verify_codes else [])]:
            raise UserError(
                f"{set_here[0]} belongs to superposition codes; --residual learned takes --residual-dims, --residual-lm and --learned-code"
            )
        learned = LearnedRecipe(
            folder=options.learned_code or find_learned_code(info.fingerprint),
            dims=options.residual_dims,
            lm=None if options.residual_lm == DEFAULT_LM else options.residual_lm,
            device=info.device,
        )
        return learned, learned.fingerprint(info.fingerprint)
    recipe = CodeRecipe(
        lm=options.residual_lm,
        dims=CodeRecipe.dims if options.residual_dims is None else options.residual_dims,
        bits=options.residual_bits,
        seed=options.residual_seed,
        noise=options.residual_noise,
        verify=options.verify_codes,
    )
    return recipe, recipe.fingerprint()


def summary(results: dict[str, Any]) -> str:
    """What is printed of a finished corpus; `n_cut_by_code` is counted and added to the results."""
    from lsm.corpus.reader import Corpus

    corpus = Corpus.open(Path(results["corpus"]))
    if corpus.residual and corpus.residual["kind"] == "learned":
        results["n_cut_by_code"] = int((corpus.column("code_tokens") > corpus.residual["max_tokens"]).sum())
    lines = [
        f"corpus {results['corpus']}: {results['n_documents']:,} documents, {results['n_sentences']:,} sentences, "
        f"{results['n_shards']} shards, {results['corpus_bytes'] / 2**20:,.1f} MiB"
    ]
    if results["n_sentences_written"]:
        lines.append(f"written now: {results['n_sentences_written']:,} sentences at {results['sentences_per_second']:,} sentences/s")
        lines.append(results["stages"])
    lines.append(f"truncated by the encoder: {results['n_truncated']:,} sentences")
    if "n_cut_by_code" in results:
        lines.append(f"cut by the learned code: {results['n_cut_by_code']:,} sentences, whose ends it does not hold")
    for key, what in (
        ("n_blank_documents", "blank documents passed over"),
        ("n_documents_present_before", "documents were there already"),
        ("n_documents_mended", "documents held broken surrogates, replaced by U+FFFD"),
    ):
        if results[key]:
            lines.append(f"{results[key]:,} {what}")
    return "\n".join(lines)


def _submitted(results: dict[str, Any]) -> str:
    tasks, last = results["scripts"]
    if results["submitted"]:
        return (
            f"submitted: {results['tasks']} tasks ({tasks}), then the manifest ({last}); logs stand in slurm_logs beside them. "
            f"When both have ended: lsm inspect {results['corpus']} --verify"
        )
    return f"nothing was submitted; by hand: JOB=$(sbatch --parsable {tasks}); sbatch --dependency=afterany:$JOB {last}"
