"""Every kind of bad input through the real `lsm`: one line on stderr that names the culprit, exit code 2, nothing lost.

    python scripts/bad_input.py            # a Markdown table; exit code 1 when any case breaks the promise
    python scripts/bad_input.py --only disk

Everything is made in a temporary folder by the stub encoder; no asset and no network is needed. Cases on a full disk and on
a read-only one mount a small tmpfs and are skipped, with a note, where that is not allowed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsm.decode.shipped import SHIPPED, SHIPPED_CODES

TIMEOUT_SECONDS = 180
LONG_LINE_BYTES = 200_000_000
TINY = (
    "--steps 2 --eval-every 2 --save-every 1 --keep-checkpoints 2 --threads 1 --precision float32 --optimizer.warmup-steps 1 "
    "--model.context 8 --model.hidden 16 --model.layers 1 --model.heads 2 --data.batch-sentences 64 --data.held-out-fraction 0.2"
)
TINY_DECODER = (
    "--lm stub --steps 2 --eval-every 2 --save-every 2 --threads 1 --ema-decay None --precision float32 --optimizer.warmup-steps 1 "
    "--adapter.prefix-length 2 --adapter.hidden 16 --adapter.blocks 1 --lexical-stage.steps 1 "
    "--reading.held-out-fraction 0.2 --reading.max-tokens 160"
)
CODE = "--residual superposition --residual-lm stub --residual-dims 64"
OFFLINE = {"LSM_HOME": "empty-home", "HF_HOME": "empty-hub", "LSM_OFFLINE": "1"}
NOWHERE = "http://127.0.0.1:9"
NO_NETWORK = {
    "LSM_HOME": "empty-home-2", "HF_HOME": "empty-hub-2", "LSM_OFFLINE": "", "HF_ENDPOINT": NOWHERE, "NO_PROXY": "", "no_proxy": "",
    "PIP_INDEX_URL": f"{NOWHERE}/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull,
    **{name: NOWHERE for proxy in ("http_proxy", "https_proxy", "all_proxy") for name in (proxy, proxy.upper())},
}  # fmt: skip


@dataclass
class Case:
    """One call of lsm that must be refused."""

    name: str
    command: str
    names: str
    """Pattern of what the line must name."""
    environment: dict[str, str] = field(default_factory=dict)
    keeps: str | None = None
    """Folder whose every byte must stay as it is."""


@dataclass
class Outcome:
    case: Case
    status: int | None
    stderr: str
    faults: list[str]
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cases whose name or command holds this")
    parser.add_argument("--jobs", type=int, default=2, help="calls at a time")
    options = parser.parse_args()
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts and the temporary folder go
    outcomes: list[Outcome] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lsm-bad-input-") as name:
        folder = Path(name)
        make_inputs(folder)
        print("| case | command | exit code | line on stderr |\n|---|---|---|---|", flush=True)
        cases = [case for case in all_cases() if options.only in case.name or options.only in case.command]
        with ThreadPoolExecutor(options.jobs) as threads:
            for outcome in threads.map(lambda case: refused(case, folder), cases):
                outcomes.append(outcome)
                show(outcome)
        for check in (two_writers, two_trainings, full_disk, read_only, broken_row_then_mended, damaged_shard_then_mended):
            if options.only in check.__name__.replace("_", " "):
                shown = len(outcomes)
                check(folder, outcomes, notes)
                for outcome in outcomes[shown:]:
                    show(outcome)
    print()
    for note in notes:
        print(f"- {note}")
    faults = [f"{outcome.case.name} (`{outcome.case.command}`): {fault}" for outcome in outcomes for fault in outcome.faults]
    faults += [note for note in notes if note.startswith("FAULT")]
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    slow = f"the slowest, `{slowest.case.command.replace(TINY, '…')}`, {slowest.seconds:.1f} s"
    print(f"\n{len(outcomes)} cases in {time.monotonic() - begin:.0f} s ({slow}); {len(faults)} faults")
    for fault in faults:
        print(f"- {fault}")
    return 1 if faults else 0


def show(outcome: Outcome) -> None:
    """One row of the table."""
    line = " ⏎ ".join(outcome.stderr.strip().splitlines()) or "(nothing)"
    mark = " ✗" if outcome.faults else ""
    command = outcome.case.command.replace(TINY, "…")
    cells = [outcome.case.name, f"`lsm {command}`", f"{outcome.status}{mark}", shorter(line)]
    print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)


def all_cases() -> list[Case]:
    """Every case that is one call."""
    encode = "encode-corpus {} --out made-{} --encoder stub"

    def reading(name: str, file: str, names: str) -> Case:
        return Case(name, encode.format(file, re.sub(r"\W", "-", file)), names)

    def pair(name: str, folder: str, names: str) -> list[Case]:
        return [
            Case(name, f"inspect {folder} --verify", names, keeps=folder),
            Case(name, f"pretrain --corpus {folder} --out run-{folder} {TINY}", names, keeps=folder),
            Case(name, f"evaluate run --corpus {folder}", names, keeps=folder),
        ]

    stored = "--decoder retrieval --corpus corpus"
    vectors = "invert {} --encoder stub " + stored
    both = r"\[[0-9a-f]{16}\].*\[[0-9a-f]{16}\]"  # the two fingerprints
    another, offline, no_network = "corpus of another encoder", "no network (LSM_OFFLINE), empty cache", "no network, empty cache"
    return [
        reading("missing file", "nothing.txt", "nothing.txt"),
        reading("glob without files", "'no*.txt'", r"no\*.txt"),
        reading("folder without readable files", "pictures", "pictures"),
        reading("empty file", "empty.txt", "empty.txt"),
        reading("empty file", "empty.jsonl", "empty.jsonl"),
        reading("only white space", "blank.txt", "blank.txt"),
        reading("binary file", "binary.txt", "binary.txt"),
        reading("binary file", "binary.jsonl", "binary.jsonl"),
        reading("binary file", "picture.png", "picture.png"),
        reading("UTF-16", "utf16.txt", "utf16.txt.*iconv"),
        reading("UTF-16", "utf16.jsonl", "utf16.jsonl.*iconv"),
        reading("UTF-16 without byte order mark", "utf16le.txt", "utf16le.txt.*iconv"),
        reading("Latin-1", "latin1.txt", "latin1.txt.*iconv"),
        reading("Latin-1", "latin1.jsonl", "latin1.jsonl.*iconv"),
        reading("one line of 200 MB", "line.txt", "line.txt.*MiB"),
        reading("one line of 200 MB", "line.jsonl", "line.jsonl.*MiB"),
        reading("broken JSONL row", "broken.jsonl", "broken.jsonl:3"),
        reading("JSONL row without text", "no-text.jsonl", "no-text.jsonl:1"),
        reading("truncated .jsonl.gz", "cut.jsonl.gz", "cut.jsonl.gz"),
        reading("parquet without a text column", "other.parquet", "other.parquet.*columns"),
        reading("truncated parquet", "cut.parquet", "cut.parquet"),
        reading("parquet that is none", "fake.parquet", "fake.parquet"),
        Case("missing prompt", f"generate run --prompt nothing.txt {stored}", "nothing.txt"),
        Case("binary prompt", f"generate run --prompt binary.txt {stored}", "binary.txt"),
        Case("binary input", f"roundtrip binary.txt --encoder stub --independent none {stored}", "binary.txt"),
        Case(f"{another} (resume)", "encode-corpus books.jsonl --out corpus --encoder other", both, keeps="corpus"),
        Case(f"{another} (append)", "encode-corpus more.txt --append --out corpus --encoder other", both, keeps="corpus"),
        Case(another, "evaluate run --corpus corpus-other", f"corpus-other.*{both}"),
        Case(another, "generate run --prompt more.txt --decoder retrieval --corpus corpus-other", f"corpus-other.*{both}"),
        Case(another, "invert good.npy --encoder stub --decoder retrieval --corpus corpus-other", f"corpus-other.*{both}"),
        Case(another, f"roundtrip corpus-other --encoder stub --independent none {stored}", f"corpus-other.*{both}"),
        Case("run with another corpus (resume)", f"pretrain --corpus corpus-other --out run {TINY}", r"run.*fingerprint", keeps="run"),
        Case("other encoder than the run's", f"generate run --prompt more.txt --encoder other {stored}", f"other.*{both}"),
        *pair("truncated shard: vectors", "corpus-cut-vectors", "semantic.npy"),
        *pair("truncated shard: sentences", "corpus-cut-sentences", "sentences.parquet"),
        *pair("shard missing", "corpus-no-shard", "00001"),
        *pair("table of documents truncated", "corpus-cut-documents", "documents.parquet"),
        *pair("manifest truncated", "corpus-cut-manifest", "manifest.json"),
        Case("truncated shard: sentences", "build-index --corpus corpus-cut-sentences --out cut.index", "sentences.parquet"),
        Case("truncated shard, resumed", "encode-corpus books.jsonl --out corpus-cut-marker --encoder stub --shard-rows 200", "done.json"),
        Case("flipped byte: vectors", "inspect corpus-flip-vectors --verify", "semantic.npy", keeps="corpus-flip-vectors"),
        Case("flipped byte: sentences", "inspect corpus-flip-sentences --verify", "sentences.parquet", keeps="corpus-flip-sentences"),
        Case("flipped byte: documents", "inspect corpus-flip-documents --verify", "documents.parquet"),
        Case("flipped byte: trained weights", "inspect run-flip --verify", "model.safetensors", keeps="run-flip"),
        Case("truncated trained weights", "inspect run-cut --verify", "model.safetensors"),
        Case("truncated trained weights", "evaluate run-cut --corpus corpus", "run-cut/final"),
        Case("truncated trained weights", f"generate run-cut --prompt more.txt {stored}", "run-cut/final"),
        Case("truncated checkpoint, resumed", f"pretrain --corpus corpus --out run-checkpoint {TINY}", "optimizer", keeps="run-checkpoint"),
        Case("a corpus is no run", "evaluate corpus --corpus corpus", "corpus"),
        Case("a run is no corpus", f"pretrain --corpus run --out run-2 {TINY}", "run is not a corpus"),
        Case("truncated phrase store", "invert good.npy --encoder stub --decoder retrieval --index cut.faiss", "cut.faiss"),
        Case("NaN in vectors", vectors.format("nan.npy"), "vector 1"),
        Case("infinity in vectors", vectors.format("inf.npy"), "vector 2"),
        Case("vectors of another width", vectors.format("wide.npy"), r"\[4, 65\].*64"),
        Case("three-dimensional vectors", vectors.format("cube.npy"), "cube.npy"),
        Case("vectors that are integers", vectors.format("integers.npy"), "integers.npy"),
        Case("vectors that are pickled", vectors.format("pickle.npy"), "pickle.npy"),
        Case("text in place of vectors", vectors.format("more.txt"), "more.txt"),
        Case("truncated .npy", vectors.format("cut.npy"), "cut.npy"),
        Case(offline, "encode-corpus more.txt --out made-offline --encoder minilm", "minilm", OFFLINE),
        Case(offline, "encode-corpus sotu --out made-offline-2 --encoder stub", "sotu", OFFLINE),
        Case(offline, "encode-corpus hf:some/data --out made-offline-3 --encoder stub", "hf:some/data", OFFLINE),
        Case(offline, "encode-corpus more.txt --out made-offline-4 --encoder owner/model", "owner/model", OFFLINE),
        Case(offline, "assets pull smollm2-135m-instruct", "smollm2-135m-instruct", OFFLINE),
        Case(offline, "roundtrip more.txt --encoder minilm", "minilm", OFFLINE),
        Case(no_network, "encode-corpus more.txt --out made-nonet --encoder minilm", "minilm", NO_NETWORK),
        Case(no_network, "encode-corpus sotu --out made-nonet-2 --encoder stub", "sotu", NO_NETWORK),
        Case(no_network, "encode-corpus more.txt --out made-nonet-3 --encoder owner/model", "owner/model", NO_NETWORK),
        Case(no_network, "assets pull wordllama", "wordllama", NO_NETWORK),
        Case("unknown config key", "pretrain --corpus corpus --out run-3 --config unknown.yaml", r"unknown.yaml.*model\.hiden"),
        Case("config that is no YAML", "pretrain --corpus corpus --out run-3 --config broken.yaml", "broken.yaml"),
        Case("config that is a folder", "pretrain --corpus corpus --out run-3 --config pictures", "pictures"),
        Case("config missing", "pretrain --corpus corpus --out run-3 --config nothing.yaml", "nothing.yaml"),
        Case("value out of range", "pretrain --corpus corpus --out run-3 --model.heads 7", "model.heads 7"),
        Case("unknown option", "evaluate run --corpus corpus --corpsu corpus", "corpsu"),
        Case("unknown encoder", "encode-corpus more.txt --out made-unknown --encoder minlm", "minlm"),
        Case("--out is a file", "encode-corpus more.txt --out more.txt --encoder stub", "more.txt"),
        Case("--out is a file", f"pretrain --corpus corpus --out more.txt {TINY}", "more.txt"),
        Case("--out below a file", "encode-corpus more.txt --out more.txt/corpus --encoder stub", "more.txt"),
        Case("--out below a file", f"pretrain --corpus corpus --out more.txt/run {TINY}", "more.txt"),
        Case("--out below a file", "build-index --corpus corpus --out more.txt/store.faiss", "more.txt"),
        Case("--out in a folder that is not there", f"generate run --prompt more.txt {stored} --out nowhere/made.txt", "nowhere"),
        Case("--json below a file", "inspect corpus --json more.txt/report.json", "report.json"),
        Case("--out holds something else", "encode-corpus more.txt --out pictures --encoder stub", "pictures", keeps="pictures"),
        Case("--out holds something else", f"pretrain --corpus corpus --out pictures {TINY}", "pictures", keeps="pictures"),
        *code_cases(),
        *decoder_cases(),
    ]  # fmt: skip


def code_cases() -> list[Case]:
    """Residual codes that cannot be made, and corpora whose codes were changed."""

    def encode(option: str, names: str) -> Case:
        code = option if "dims" in option else f"--residual-dims 64 {option}"
        command = f"encode-corpus more.txt --out made-code --encoder stub --residual superposition --residual-lm stub {code}"
        return Case("impossible code", command, names)

    def roundtrip(option: str, names: str) -> Case:
        code = "--residual superposition --lm stub --prior none --residual-dims 64"
        return Case("impossible code", f"roundtrip more.txt --encoder stub --independent none --decoder none {code} {option}", names)

    def changed(name: str, corpus: str, names: str, options: Sequence[str] = ("--text", "--verify")) -> list[Case]:
        return [Case(f"codes: {name}", f"inspect {corpus} {option}", f"{corpus}.*{names}", keeps=corpus) for option in options]

    again = "run (the )?encode-corpus"
    learned = "roundtrip more.txt --encoder {} --independent none --decoder none --residual learned {}"
    shipped = next(path for path in sorted(SHIPPED_CODES.iterdir()) if (path / "config.json").exists())
    return [
        encode("--residual-dims 0", "--residual-dims 0: .*multiple of 8"),
        encode("--residual-dims 60", "--residual-dims 60: .*multiple of 8"),
        encode("--residual-dims 8192", "--residual-dims 8192: .*4096"),
        encode("--residual-bits 5", "--residual-bits 5: choose from 8, 6, 4"),
        encode("--residual-seed -1", "--residual-seed -1"),
        encode("--residual-noise 2", "--residual-noise 2.0: must lie in 0 … 1"),
        encode("--residual-noise nan", "--residual-noise nan: must lie in 0 … 1"),
        encode("--drop-text", "--drop-text.*--verify-codes"),
        encode("--residual-lm nothing-there", "nothing-there"),
        roundtrip("--residual-dims 0", "--residual-dims 0: .*multiple of 8"),
        roundtrip("--residual-dims 64,x", "--residual-dims 64,x: .*commas"),
        roundtrip("--residual-dims ''", "--residual-dims .nothing.: .*commas"),
        roundtrip("--residual-bits 8,5", "--residual-bits 5: choose from 8, 6, 4"),
        roundtrip("--prior telepathy", "--prior telepathy: choose from"),
        roundtrip("--prior ''", "--prior"),
        roundtrip("--prior semantic", "--adapter"),
        roundtrip("--noise -1", "--noise"),
        *changed("residual.npy truncated", "codes-cut", f"residual.npy.*{again}"),
        *changed("residual.npy truncated, no text", "codes-only-cut", f"residual.npy.*{again}"),
        *changed("residual.npy missing", "codes-none", f"residual.npy.*{again}"),
        *changed("residual-more.npy truncated", "codes-cut-more", f"residual-more.npy.*{again}"),
        *changed("flipped byte", "codes-flip", f"residual.npy.*{again}"),
        *changed("flipped byte, no text", "codes-only-flip", f"residual.npy.*{again}"),
        *changed("flipped byte, unverified", "codes-open-flip", f"residual.npy.*{again}"),
        *changed("flipped byte in residual-more.npy", "codes-flip-more", f"residual-more.npy.*{again}"),
        *changed("another seed in the manifest", "codes-seed", f"manifest.json.*seed 1 for 0.*{again}"),
        *changed("another seed in the manifest, no text", "codes-only-seed", f"manifest.json.*seed 1 for 0.*{again}"),
        *changed("another seed in the manifest, unverified", "codes-open-seed", f"manifest.json.*seed 1 for 0.*{again}"),
        *changed("other dims in the manifest", "codes-dims", f"manifest.json.*dims 72 for 64.*{again}"),
        *changed("no code in the manifest", "codes-unnamed", f"manifest.json.*{again}", options=("--verify",)),
        Case("codes: another tokenizer", "inspect codes --text --lm nothing-there", "nothing-there"),
        Case(
            "codes: no text to search", "invert good.npy --encoder stub --decoder retrieval --corpus codes-only", "codes-only.*codes only"
        ),
        Case("learned code that is not there", learned.format("stub", "--learned-code nothing"), "nothing.*train-decoder"),
        Case("learned code that is none", learned.format("stub", "--learned-code corpus"), "corpus.*train-decoder"),
        Case("no learned code for the encoder", learned.format("stub", ""), "--learned-code"),
        Case("learned code of another encoder", learned.format("stub", f"--learned-code {shipped}"), f"{shipped.name}.*minilm.*stub"),
    ]


def decoder_cases() -> list[Case]:
    """Vectors, and parts of decoders, that do not go with one another."""
    stored = "--decoder retrieval --corpus corpus"
    shipped = next(path for path in sorted(SHIPPED.iterdir()) if (path / "config.json").exists())
    both = r"\[[0-9a-f]{16}\].*\[[0-9a-f]{16}\]"
    ways = {"retrieval": stored, "guided": "--decoder guided --lm stub", "prefix": "--adapter decoder/final --lm stub"}
    vectors = [
        Case(f"{name} ({way})", f"invert {file} --encoder stub {options}", names)
        for way, options in ways.items()
        for name, file, names in (
            ("zero vector", "zeros.npy", "vector 2 holds zeros only.*encode its text again"),
            ("NaN in vectors", "nan.npy", "vector 1 holds NaN.*encode its text again"),
            ("vectors of another width", "wide.npy", r"\[4, 65\].*64"),
        )
    ]
    roundtrip = "roundtrip more.txt --encoder stub --independent none --lm stub"
    corrector = f"{roundtrip} --adapter decoder/final --decoder corrector"
    single = "train-decoder --corpus single --out run-single-{}"
    one = "single has one document.*at least two"
    return [
        *vectors,
        Case("no vectors", f"invert none.npy --encoder stub {stored}", "none.npy"),
        Case("--limit 0", f"invert good.npy --encoder stub {stored} --limit 0", "--limit 0"),
        Case("--limit -1", f"invert good.npy --encoder stub {stored} --limit -1", "--limit -1"),
        Case("store of another encoder", "invert good.npy --encoder stub --decoder retrieval --index other.faiss", f"other.faiss.*{both}"),
        Case("adapter of another encoder", f"invert good.npy --encoder stub --adapter {shipped.name}", f"{shipped.name}.*{both}"),
        Case("adapter of another encoder", "invert wide8.npy --encoder other --adapter decoder/final", f"decoder/final.*{both}"),
        Case("adapter that is none", "invert good.npy --encoder stub --adapter corpus", "--adapter corpus"),
        Case("no adapter for the encoder", "invert good.npy --encoder stub", "--adapter"),
        Case("truncated adapter", "invert good.npy --encoder stub --lm stub --adapter decoder-cut/final", "decoder-cut/final"),
        Case("--encoder-calls 0", "invert good.npy --encoder stub --decoder guided --encoder-calls 0", "--encoder-calls 0: .*at least 1"),
        Case("--encoder-calls 0", f"{roundtrip} --decoder inversion --encoder-calls 0", "--encoder-calls 0: .*at least 1"),
        Case("--beam 0", "invert good.npy --encoder stub --decoder guided --beam 0", "--beam 0: .*at least 1"),
        Case("no --corrector", f"{roundtrip} --decoder corrector", "--decoder corrector: .*--corrector RUN/final"),
        Case("no --corrector", corrector, "--decoder corrector: .*--corrector RUN/final"),
        Case("corrector that is not there", f"{corrector} --corrector nothing", "nothing"),
        Case("corrector that is none", f"{corrector} --corrector decoder/final", "decoder/final"),
        Case("retrieval from nothing", "invert good.npy --encoder stub --decoder retrieval", "--index.*--corpus"),
        Case("unknown decoder", "invert good.npy --encoder stub --decoder telepathy", "telepathy"),
        Case("unknown decoder", f"{roundtrip} --decoder telepathy", "--decoder telepathy: choose from"),
        Case("no decoder", f"{roundtrip} --decoder none", "--decoder none"),
        Case("one document", f"{single.format(1)} {TINY_DECODER}", one),
        Case("one document", f"{single.format(2)} {kind_of('learned-code')}", one),
        Case("one document", f"{single.format(3)} {kind_of('corrector')} --adapter.hidden 16 --start-from decoder/final", one),
        Case("training without text", f"train-decoder --corpus codes-only --out run-codes {TINY_DECODER}", "codes-only.*codes only"),
        Case("no vec2text checkpoint", "invert good.npy --encoder stub --decoder vec2text --vec2text nothing", "nothing"),
        Case("no vec2text checkpoint", "invert good.npy --encoder stub --decoder vec2text", "jxm/gtr__nq__32.*assets pull", OFFLINE),
        Case("vec2text checkpoint that is none", "invert good.npy --encoder stub --decoder vec2text --vec2text corpus", "corpus"),
    ]  # fmt: skip


def kind_of(kind: str) -> str:
    """The option that names a tiny config of train-decoder."""
    return f"--config {Path(__file__).resolve().parent.parent / 'configs' / f'{kind}-tiny.yaml'}"


def make_inputs(folder: Path) -> None:
    """Files, a corpus, one of another encoder, a run, and damaged copies."""
    generator = np.random.default_rng(0)
    words = np.array(["river", "stone", "garden", "letter", "winter", "morning", "bridge", "captain", "window", "silver", "door", "road"])

    def document(n: int) -> str:
        return " ".join(f"The {' '.join(generator.choice(words, 5))} stood by {n} and {i}." for i in range(24))

    texts = [document(n) for n in range(40)]
    rows = [json.dumps({"id": f"book-{n}", "text": text}) for n, text in enumerate(texts)]
    (folder / "books.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "more.txt").write_text(document(99) + "\n")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.copy(folder / "pictures" / "a.png", folder / "picture.png")
    for name in ("empty.txt", "empty.jsonl"):
        (folder / name).touch()
    (folder / "blank.txt").write_text(" \n\n\t\n")
    for name in ("binary.txt", "binary.jsonl"):
        (folder / name).write_bytes(generator.bytes(20_000))
    (folder / "utf16.txt").write_bytes("Grüße aus Köln. Und mehr.".encode("utf-16"))
    (folder / "utf16.jsonl").write_bytes('{"text": "Grüße aus Köln."}\n'.encode("utf-16"))
    (folder / "utf16le.txt").write_bytes("Some plain words, without a mark.".encode("utf-16-le"))
    (folder / "latin1.txt").write_bytes("Un café noir. Voilà tout.".encode("latin-1"))
    (folder / "latin1.jsonl").write_bytes('{"text": "ok"}\n{"text": "Un café noir."}\n'.encode("latin-1"))
    block = b"all these words stand in one single line and never end, " * 20_000
    for name, head in (("line.txt", b""), ("line.jsonl", b'{"text": "')):
        with open(folder / name, "wb") as handle:
            handle.write(head)
            for _ in range(-(-LONG_LINE_BYTES // len(block))):
                handle.write(block)
            handle.write(b'"}\n' if head else b"")
    (folder / "broken.jsonl").write_text('{"text": "One."}\n{"text": "Two."}\n{"text": "Thr\n{"text": "Four."}\n')
    (folder / "no-text.jsonl").write_text('{"body": "One."}\n')
    compressed = pa.compress(("\n".join(rows) + "\n").encode(), codec="gzip", asbytes=True)
    (folder / "cut.jsonl.gz").write_bytes(compressed[: len(compressed) // 2])
    pq.write_table(pa.table({"body": ["One."], "stars": [5]}), folder / "other.parquet")
    pq.write_table(pa.table({"text": texts}), folder / "cut.parquet")
    cut(folder / "cut.parquet")
    (folder / "fake.parquet").write_text("text\nOne.\n")
    vectors = generator.standard_normal((4, 64)).astype(np.float32)
    np.save(folder / "good.npy", vectors)
    np.save(folder / "wide.npy", np.ones((4, 65), np.float32))
    np.save(folder / "cube.npy", np.ones((2, 2, 64), np.float32))
    np.save(folder / "integers.npy", np.ones((4, 64), np.int64))
    np.save(folder / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(folder / "cut.npy", vectors)
    cut(folder / "cut.npy")
    np.save(folder / "none.npy", vectors[:0])
    np.save(folder / "wide8.npy", vectors[:, :8])
    zeros = vectors.copy()
    zeros[2] = 0
    np.save(folder / "zeros.npy", zeros)
    for name, row, value in (("nan.npy", 1, np.nan), ("inf.npy", 2, np.inf)):
        bad = vectors.copy()
        bad[row, 3] = value
        np.save(folder / name, bad)
    (folder / "unknown.yaml").write_text("steps: 2\nmodel:\n  hiden: 32\n")
    (folder / "broken.yaml").write_text("steps: [2\nmodel: }\n")
    other_encoder(folder / "other")

    good(folder, "encode-corpus books.jsonl --out corpus --encoder stub --shard-rows 200 --workers 1")
    good(folder, "encode-corpus books.jsonl --out corpus-other --encoder other --shard-rows 200 --workers 1")
    good(folder, f"pretrain --corpus corpus --out run {TINY}")
    good(folder, "build-index --corpus corpus --out cut.faiss")
    cut(folder / "cut.faiss")
    good(folder, "build-index --corpus corpus-other --out other.faiss")
    good(folder, "encode-corpus more.txt --out single --encoder stub --workers 1")
    good(folder, f"train-decoder --corpus corpus --out decoder {TINY_DECODER}")
    (folder / "few.jsonl").write_text("\n".join(rows[:6]) + "\n")
    for name, more in (("codes", "--verify-codes"), ("codes-only", "--verify-codes --drop-text"), ("codes-open", "")):
        good(folder, f"encode-corpus few.jsonl --out {name} --encoder stub --shard-rows 80 --workers 1 {CODE} {more}")
    damages: list[tuple[str, str, str, Callable[[Path], None]]] = [
        ("corpus", "cut-vectors", "shards/00001/semantic.npy", cut),
        ("corpus", "cut-sentences", "shards/00001/sentences.parquet", cut),
        ("corpus", "no-shard", "shards/00001", shutil.rmtree),
        ("corpus", "cut-documents", "documents.parquet", cut),
        ("corpus", "cut-manifest", "manifest.json", cut),
        ("corpus", "cut-marker", "shards/00001/done.json", cut),
        ("corpus", "flip-vectors", "shards/00001/semantic.npy", flip),
        ("corpus", "flip-sentences", "shards/00001/sentences.parquet", flip),
        ("corpus", "flip-documents", "documents.parquet", flip),
        ("run", "flip", "final/model.safetensors", flip),
        ("run", "cut", "final/model.safetensors", cut),
        ("run", "checkpoint", "step-00000002/optimizer.safetensors", cut),
        ("decoder", "cut", "final/model.safetensors", cut),
        ("codes", "cut", "shards/00001/residual.npy", cut),
        ("codes", "none", "shards/00001/residual.npy", Path.unlink),
        ("codes", "cut-more", "shards/00001/residual-more.npy", cut),
        ("codes", "flip", "shards/00001/residual.npy", flip),
        ("codes", "flip-more", "shards/00001/residual-more.npy", flip),
        ("codes", "seed", "manifest.json", other_code(seed=1)),
        ("codes", "dims", "manifest.json", other_code(dims=72)),
        ("codes", "unnamed", "manifest.json", no_code),
        ("codes-only", "cut", "shards/00001/residual.npy", cut),
        ("codes-only", "flip", "shards/00001/residual.npy", flip),
        ("codes-only", "seed", "manifest.json", other_code(seed=1)),
        ("codes-open", "flip", "shards/00001/residual.npy", flip),
        ("codes-open", "seed", "manifest.json", other_code(seed=1)),
    ]
    for what, damage, file, do in damages:
        shutil.copytree(folder / what, folder / f"{what}-{damage}")
        do(folder / f"{what}-{damage}" / file)
    shutil.rmtree(folder / "run-checkpoint" / "final")


def other_encoder(folder: Path) -> None:
    """A static encoder of eight dimensions, made here: real, tiny, and not the stub."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder.mkdir()
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "The": 1, "river": 2, "stone": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding": np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)}, folder / "vectors.safetensors")


def two_writers(folder: Path, outcomes: list[Outcome], notes: list[str]) -> None:
    """A second encode-corpus into a folder where one is at work."""
    command = "encode-corpus {} --out made-twice --encoder {} --shard-rows 200 --workers 1"
    slow = folder / "slow.jsonl"
    slow.write_text("".join(f"{json.dumps({'text': f'Sentence one of {n}. ' + 'More of it came. ' * 60})}\n" for n in range(3000)))
    with background(command.format("slow.jsonl", "stub-slow"), folder, until=folder / "made-twice" / "shards" / "00000"):
        outcomes.append(refused(Case("two writers", command.format("slow.jsonl", "stub"), "made-twice.*another process"), folder))
    free = lsm("encode-corpus slow.jsonl --out made-twice --encoder stub --shard-rows 200 --workers 1 --limit-documents 3", folder)
    fault = "FAULT " if "another process" in free.stderr else ""
    notes.append(f"{fault}two writers: after kill -9 of the first one the folder is free again")


def two_trainings(folder: Path, outcomes: list[Outcome], notes: list[str]) -> None:
    """A second pretrain into a run where one is at work."""
    command = f"pretrain --corpus corpus --out run-twice {TINY.replace('--steps 2', '--steps 200000')}"
    with background(command, folder, until=folder / "run-twice" / "step-00000001"):
        outcomes.append(refused(Case("two writers", command, "run-twice"), folder))


def full_disk(folder: Path, outcomes: list[Outcome], notes: list[str]) -> None:
    """Each verb that writes, onto a tmpfs of a few pages; encode-corpus goes on after it has been given room."""
    try:
        with mounted(folder / "disk", "size=160k") as disk:
            encode = "encode-corpus books.jsonl --out disk/corpus --encoder stub --shard-rows 200 --workers 1"
            outcomes.append(refused(Case("full disk", encode, "disk full.*disk/corpus"), folder))
            kept = sorted(path.parent.name for path in disk.glob("corpus/shards/*/done.json"))
            subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
            resumed = lsm(encode, folder)
            whole = lsm("inspect disk/corpus --verify", folder).returncode == 0
            same = hashes(disk / "corpus") == hashes(folder / "corpus")
            fault = "" if whole and same and kept else "FAULT "
            verdict = "byte-identical to an unbroken run" if same else "NOT the bytes of an unbroken run"
            notes.append(
                f"{fault}full disk: {len(kept)} finished shards were kept; given room, the same command "
                f"ended with {resumed.returncode} and the corpus is {verdict}"
            )
        for name, command, size in (
            ("pretrain", f"pretrain --corpus corpus --out disk/run {TINY}", "size=40k"),
            ("pretrain, first log", f"pretrain --corpus corpus --out disk/run {TINY}", "size=16k"),
            ("build-index", "build-index --corpus corpus --out disk/store.faiss", "size=40k"),
            ("generate --out", "generate run --prompt more.txt --decoder retrieval --corpus corpus --out disk/made.txt", "size=4k"),
            ("evaluate --plots", "evaluate run --corpus corpus --resamples 10 --plots disk/plots", "size=8k"),
            ("--json", "inspect corpus --json disk/report.json", "size=4k"),
        ):
            with mounted(folder / "disk", size) as disk:
                if size == "size=4k":
                    (disk / "filler").write_bytes(b"x" * 4096)
                outcomes.append(refused(Case(f"full disk: {name}", command, "disk full.*disk/"), folder))
                left = [path.name for path in disk.rglob("*.partial")]
                if left:
                    notes.append(f"FAULT full disk, {name}: leaves {', '.join(left)}")
    except PermissionError as error:
        notes.append(f"full disk: SKIPPED ({error}); run as root to mount a small tmpfs")


def read_only(folder: Path, outcomes: list[Outcome], notes: list[str]) -> None:
    """Each verb that writes, into a folder that cannot be written: a read-only mount for root, permissions for others."""
    disk = folder / "read-only"
    commands = (
        "encode-corpus more.txt --out read-only/corpus --encoder stub",
        f"pretrain --corpus corpus --out read-only/run {TINY}",
        "build-index --corpus corpus --out read-only/store.faiss",
        "generate run --prompt more.txt --decoder retrieval --corpus corpus --out read-only/made.txt",
        "inspect corpus --json read-only/report.json",
        "evaluate run --corpus corpus --resamples 10 --plots read-only/plots",
    )
    cases = [Case("read-only folder", command, "read-only") for command in commands]
    cases.append(Case("read-only cache", "encode-corpus more.txt --out made-cache --encoder minilm", "LSM_HOME|read-only",
                      NO_NETWORK | {"LSM_HOME": "read-only/home"}))  # fmt: skip
    if os.geteuid():
        disk.mkdir(mode=0o555)
        outcomes += [refused(case, folder) for case in cases]
        return
    try:
        with mounted(disk, "ro"):
            outcomes += [refused(case, folder) for case in cases]
    except PermissionError as error:
        notes.append(f"read-only folder: SKIPPED ({error}); root may write anywhere, so run as another user or where mounts are allowed")


def broken_row_then_mended(folder: Path, outcomes: list[Outcome], notes: list[str]) -> None:
    """A broken row in the middle of a file: what was finished before it is kept, and the mended file goes on from there."""
    rows = (folder / "books.jsonl").read_text().splitlines()
    late = folder / "late.jsonl"
    late.write_text("\n".join([*rows[:30], rows[30][:-5], *rows[31:]]) + "\n")
    command = "encode-corpus late.jsonl --out made-late --encoder stub --shard-rows 200 --workers 1"
    outcomes.append(refused(Case("broken JSONL row in the middle", command, "late.jsonl:31"), folder))
    kept = len(list((folder / "made-late").glob("shards/*/done.json")))
    late.write_text("\n".join(rows) + "\n")
    resumed = lsm(command, folder).returncode
    whole = lsm("inspect made-late --verify", folder).returncode
    fault = "" if kept and resumed == whole == 0 else "FAULT "
    notes.append(
        f"{fault}broken row: {kept} shards were kept; with the row mended the same command ended with {resumed}, verify with {whole}"
    )


def damaged_shard_then_mended(folder: Path, outcomes: list[Outcome], notes: list[str]) -> None:
    """Damaged shards are mended as the message says: run the command again."""
    resumed = lsm("encode-corpus books.jsonl --out corpus-cut-vectors --encoder stub --shard-rows 200 --workers 1", folder).returncode
    same = hashes(folder / "corpus-cut-vectors") == hashes(folder / "corpus")
    fault = "" if same and resumed == 0 else "FAULT "
    notes.append(f"{fault}truncated shard: encoded again as the line says: {'same bytes' if same else 'OTHER BYTES'} as before")


@contextmanager
def mounted(folder: Path, how: str) -> Iterator[Path]:
    """A tmpfs at `folder`; `PermissionError` where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if finished is None or finished.returncode:
        raise PermissionError(finished.stderr.strip() if finished else "no mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def background(command: str, folder: Path, *, until: Path) -> Iterator[None]:
    """The command at work: it is waited for until `until` exists, and killed at the end."""
    process = subprocess.Popen(words(command), cwd=folder, env=environment({}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not until.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def refused(case: Case, folder: Path) -> Outcome:
    """Run the case and say what about it breaks the promise."""
    before = hashes(folder / case.keeps) if case.keeps else {}
    begin = time.monotonic()
    try:
        finished = lsm(case.command, folder, case.environment)
    except subprocess.TimeoutExpired:
        return Outcome(case, None, "", [f"no end after {TIMEOUT_SECONDS} s"])
    lines = finished.stderr.strip().splitlines()
    faults = []
    if finished.returncode != 2:
        faults.append(f"exit code {finished.returncode}")
    if "Traceback" in finished.stderr:
        faults.append("a traceback")
    if len(lines) != 1:
        faults.append(f"{len(lines)} lines on stderr")
    if not re.search(case.names, finished.stderr):
        faults.append(f"the line does not name {case.names}")
    if case.keeps and hashes(folder / case.keeps) != before:
        faults.append(f"{case.keeps} was changed")
    return Outcome(case, finished.returncode, finished.stderr.replace(f"{folder}/", ""), faults, time.monotonic() - begin)


def good(folder: Path, command: str) -> None:
    """A call that must succeed: the ground on which the others fail."""
    finished = lsm(command, folder)
    if finished.returncode:
        raise SystemExit(f"preparation failed: lsm {command}\n{finished.stderr}")


def lsm(command: str, folder: Path, more: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The real command line, quiet, in the temporary folder."""
    return subprocess.run(
        words(command), cwd=folder, env=environment(more or {}), capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def words(command: str) -> list[str]:
    return [sys.executable, "-m", "lsm", *shlex.split(command), "--quiet"]


def environment(more: dict[str, str]) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"} | more


def hashes(folder: Path) -> dict[str, str]:
    """sha256 by name of all files of a folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock"]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def cut(file: Path) -> None:
    """Take the last third off a file."""
    os.truncate(file, file.stat().st_size * 2 // 3)


def flip(file: Path) -> None:
    """Change the lowest bit of the byte at two thirds of a file."""
    with open(file, "r+b") as handle:
        handle.seek(file.stat().st_size * 2 // 3)
        byte = handle.read(1)[0]
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte ^ 1]))


def other_code(**changes: int | str) -> Callable[[Path], None]:
    """Change entries of a manifest's residual code."""

    def change(manifest: Path) -> None:
        stored = json.loads(manifest.read_text())
        stored["residual"] |= changes
        manifest.write_text(json.dumps(stored))

    return change


def no_code(manifest: Path) -> None:
    """Take the residual code out of a manifest."""
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"residual": None}))


def shorter(line: str, limit: int = 420) -> str:
    return line if len(line) <= limit else f"{line[:limit]} … ({len(line)} characters)"


if __name__ == "__main__":
    sys.exit(main())
