"""`lsm inspect`: what a corpus, run or adapter folder is, what it counts, and whether it is whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from lsm.config import CommonOptions
from lsm.errors import UserError

if TYPE_CHECKING:
    from lsm.commands.residual import CorpusCodes
    from lsm.corpus.reader import Corpus


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Say what a corpus, run, adapter or phrase store is, and whether it is whole."""

    path: Positional[Path]
    """Folder of a corpus, run, model or adapter, or file of a phrase store."""
    verify: bool = False
    """Read everything and compare it with its hashes."""
    text: bool = False
    """Corpus only: print the documents, rebuilt from their sentences, or from the superposition codes alone where there are some."""
    lm: str | None = None
    """Where the LM of the residual codes lies, when it is not the asset of its name."""


def run(options: Options) -> dict[str, Any]:
    """Describe the folder; `--verify` ends in a `UserError` that names what is broken."""
    from lsm.corpus.format import MANIFEST, is_unfinished

    path = options.path
    if path.is_file() and path.with_name(path.name + ".json").exists():
        return _phrase_store(options)
    if not path.is_dir():
        raise UserError(f"{path} is {'a file, not a folder' if path.exists() else 'not there'}; name a corpus, run or adapter folder")
    if (path / MANIFEST).exists() or is_unfinished(path):
        return _corpus(options)
    if options.text:
        raise UserError(f"--text: {path} is not a corpus; only a corpus holds text")
    if (path / "config.yaml").exists() or list(path.glob("step-*")):
        return _run(options)
    if (path / "config.json").exists() or list(path.glob("*.safetensors")):
        return _model(options)
    raise UserError(f"{path} is neither a corpus nor a run nor an adapter (no {MANIFEST}, config.yaml, config.json or *.safetensors)")


def _corpus(options: Options) -> dict[str, Any]:
    import sys

    from lsm.corpus.format import MANIFEST, PLAN, SHARDS, encoder_line, maker, residual_line, shard_name
    from lsm.corpus.reader import Corpus
    from lsm.corpus.standing import shard_states
    from lsm.corpus.verify import verify
    from lsm.files import DONE_MARKER, read_json
    from lsm.progress import Progress

    path = options.path
    if not (path / MANIFEST).exists():
        markers = sorted((path / SHARDS).glob(f"*[0-9]/{DONE_MARKER}"))
        if options.verify or options.text:
            states = shard_states(path) if options.verify else []
            broken = "".join(f"; shard {shard_name(i)}: {state.problem}" for i, state in enumerate(states) if state.problem)
            raise UserError(
                f"{path} is unfinished ({len(markers)} shards are done{broken}); run its {maker(path)} command again to finish it"
            )
        done = [read_json(marker) for marker in markers]
        counts = {key: sum(entry[key] for entry in done) for key in ("n_documents", "n_sentences")}
        print(f"corpus {path}: UNFINISHED, {len(done)} shards done, {counts['n_sentences']:,} sentences; run {maker(path)} again")
        results = {"kind": "corpus", "whole": False, "n_shards": len(done), **counts}
        if (path / PLAN).exists():
            results["encoder"] = read_json(path / PLAN)["encoder"]
            print(f"  encoder  {encoder_line(results['encoder'])}")
        return results
    corpus = Corpus.open(path)
    whole = None
    if options.verify:
        read_texts = None if corpus.keeps_text else _codes(options, corpus).texts
        with Progress("verify", corpus.n_sentences, "sentences", quiet=options.quiet) as progress:
            verify(corpus, progress.advance, read_texts)
        whole = True
    manifest = corpus.manifest
    keys = ("n_documents", "n_sentences", "n_characters", "n_tokens", "n_truncated", "encoder", "residual", "parts", "segmentation")
    results = {"kind": "corpus", "whole": whole, "fingerprint": corpus.fingerprint, "n_shards": corpus.n_shards}
    results |= {key: manifest[key] for key in keys}
    if options.text and (corpus.residual is None or corpus.residual["kind"] == "learned"):
        for doc in range(corpus.n_documents):
            sys.stdout.write(corpus.document_text(doc))
        return results
    if options.text:
        return results | _text_from_codes(options, corpus)
    print(f"corpus {path} [{corpus.fingerprint}], format version {manifest['format_version']}")
    print(f"  encoder    {encoder_line(corpus.encoder)}, at most {corpus.encoder.get('max_tokens')} tokens")
    print(f"  parts      {', '.join('{name} {dim} × {dtype}'.format(**part) for part in corpus.parts())}")
    if corpus.residual:
        print(f"  residual   {residual_line(corpus.residual)}; text {manifest.get('text', 'kept')}")
    print(f"  documents  {corpus.n_documents:,}")
    mean = manifest["n_characters"] / max(corpus.n_sentences, 1)
    print(f"  sentences  {corpus.n_sentences:,} in {corpus.n_shards} shards, {mean:.0f} characters each")
    print(f"  truncated  {manifest['n_truncated']:,} sentences were longer than the encoder reads")
    print(f"  segmenter  {', '.join(f'{key} {value}' for key, value in manifest['segmentation'].items()) or 'unknown'}")
    print("  whole      " + ("yes: every hash, row, vector and span agrees" if whole else "not checked; --verify reads everything"))
    return results


def _phrase_store(options: Options) -> dict[str, Any]:
    from lsm.corpus.format import encoder_line
    from lsm.decode.phrase_store import PhraseStore, read_about

    about = read_about(options.path)
    if options.verify:
        PhraseStore.open(options.path, verify=True)
    kind, measured = about.get("kind", about.get("index")), about.get("measured")
    print(f"phrase store {options.path}: {about['n_sentences']:,} texts, {kind}, format version {about.get('format_version', 1)}")
    print(f"  encoder    {encoder_line(about['encoder'])}")
    print(f"  corpus     {about.get('corpus') or 'not recorded'}")
    if measured:
        unseen = measured.get("recall_at_10_unseen")
        more = f" ({unseen:.3f} like unseen)" if unseen is not None else ""
        line = f"recall@10 {measured['recall_at_10']:.3f}{more}, {measured['milliseconds_one_by_one']:.2f} ms a query on one thread"
        print(f"  measured   {line}")
    print("  whole      " + ("yes: every hash and count agrees" if options.verify else "not checked; --verify reads everything"))
    keys = ("n_sentences", "encoder", "corpus", "kind", "effort", "measured", "bytes")
    return {"kind": "phrase store", "whole": options.verify or None, **{f"store_{k}" if k == "kind" else k: about.get(k) for k in keys}}


def _codes(options: Options, corpus: Corpus) -> CorpusCodes:
    from lsm.commands.residual import CorpusCodes
    from lsm.provenance import choose_device

    return CorpusCodes(corpus, lm=options.lm, device=choose_device(options.device)[0])


def _text_from_codes(options: Options, corpus: Corpus) -> dict[str, Any]:
    """Print every document from its vectors and gaps alone; what no code certifies is counted on stderr."""
    import sys

    from lsm.progress import Progress, say

    codes = _codes(options, corpus)
    with Progress("reading codes", corpus.n_sentences, "sentences", quiet=options.quiet) as progress:
        for doc in range(corpus.n_documents):
            texts = codes.texts(doc)
            sys.stdout.write(corpus.document_text(doc, texts))
            progress.advance(len(texts))
    if codes.n_uncertified:
        say(f"{codes.n_uncertified:,} of {corpus.n_sentences:,} sentences are not certified and may be wrong (encode with --verify-codes)")
    return {"n_uncertified": codes.n_uncertified, "n_read_through_lm": codes.n_through_lm}


def _run(options: Options) -> dict[str, Any]:
    from lsm.files import DONE_MARKER, read_json

    path = options.path
    config = (path / "config.yaml").read_text(encoding="utf-8") if (path / "config.yaml").exists() else ""
    steps = [folder for folder in sorted(path.glob("step-*")) if (folder / DONE_MARKER).exists()]
    final = path / "final"
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if (path / "metrics.jsonl").exists() else []
    try:
        last = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path / 'metrics.jsonl'}, line {len(lines)}: not JSON; resume the run to mend it") from error
    finished = final.is_dir() and any(final.glob("*.safetensors"))
    print(f"run {path}: {'finished' if finished else 'unfinished: run its command again to go on'}")
    print(f"  checkpoints {', '.join(folder.name for folder in steps) or 'none'}; {len(lines)} lines of metrics")
    if last:
        shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in last.items())
        print(f"  last        {', '.join(shown)}")
    print("  config\n" + "\n".join("    " + line for line in config.splitlines()))
    results: dict[str, Any] = {"kind": "run", "finished": finished, "checkpoints": [folder.name for folder in steps], "last_metrics": last}
    for folder in [*steps, *([final] if finished else [])]:
        if options.verify:
            _compare_with_marker(folder, f"delete {folder} and run the training command of {path} again")
        for file in sorted(folder.rglob("*.safetensors")):
            name = file.relative_to(path).as_posix()
            summary = _safetensors(file, read_all=options.verify)
            results.setdefault("tensors", {})[name] = summary
            print(f"  {name}: {summary['parameters']:,} numbers, {summary['bytes'] / 2**20:.1f} MiB")
        if (folder / "state.json").exists():
            results.setdefault("states", {})[folder.name] = read_json(folder / "state.json")
    results["whole"] = True if options.verify else None
    print("  whole       " + ("yes: every tensor is complete and finite" if options.verify else "not checked; --verify reads everything"))
    return results


def _model(options: Options) -> dict[str, Any]:
    from lsm.files import read_json

    path = options.path
    config = read_json(path / "config.json") if (path / "config.json").exists() else {}
    if options.verify:
        _compare_with_marker(path, "copy it again, or make it again")
    print(f"model or adapter {path}")
    for line in json.dumps(config, indent=2, ensure_ascii=False).splitlines():
        print("  " + line)
    results: dict[str, Any] = {"kind": "adapter", "config": config, "tensors": {}, "whole": True if options.verify else None}
    for file in sorted(path.glob("*.safetensors")):
        summary = results["tensors"][file.name] = _safetensors(file, read_all=options.verify)
        print(f"  {file.name}: {summary['parameters']:,} numbers in {summary['tensors']} tensors, {summary['bytes'] / 2**20:.1f} MiB")
    print("  whole: " + ("yes: every tensor is complete and finite" if options.verify else "not checked; --verify reads everything"))
    return results


def _compare_with_marker(folder: Path, way_out: str) -> None:
    """Every file against the sha256 that the marker records, where there is a marker."""
    from lsm.files import DONE_MARKER, read_json, sha256_file

    if not (folder / DONE_MARKER).exists():
        return
    for name, sha256 in read_json(folder / DONE_MARKER).get("sha256", {}).items():
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
            raise UserError(f"{folder / name} is missing or differs from its hash in {DONE_MARKER} (truncated or changed); {way_out}")


def _safetensors(file: Path, *, read_all: bool) -> dict[str, Any]:
    """Counts from a safetensors header; with `read_all` also that the file is complete and every float finite.

    The header is read by hand: it needs neither torch nor a dtype that numpy knows (bf16).
    """
    import numpy as np

    way_out = "make it again or copy it again"
    size = file.stat().st_size
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 0 < length <= size - 8:
            raise UserError(f"{file} is not a whole safetensors file (its header claims {length} bytes of {size}); {way_out}")
        try:
            header = json.loads(handle.read(length))
        except ValueError as error:
            raise UserError(f"{file} is not a safetensors file (broken header); {way_out}") from error
    metadata = header.pop("__metadata__", {})
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise UserError(f"{file} is truncated or changed: {size} bytes, its header says {8 + length + end}; {way_out}")
    exponent = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00)}
    if read_all and size > 8 + length:
        data = np.memmap(file, np.uint8, mode="r", offset=8 + length)
        for name, entry in header.items():
            first, stop = entry["data_offsets"]
            if entry["dtype"] in exponent and stop > first:
                kind, mask = exponent[entry["dtype"]]
                bits = np.frombuffer(data[first:stop].tobytes(), kind)
                if ((bits & mask) == mask).any():
                    raise UserError(f"{file}: tensor {name} holds NaN or infinity; go back to an earlier checkpoint")
    parameters = sum(int(np.prod(entry["shape"], dtype=np.int64)) for entry in header.values())
    return {"tensors": len(header), "parameters": parameters, "bytes": size, "metadata": metadata}
