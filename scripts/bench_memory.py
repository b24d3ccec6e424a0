"""Memory and time of `lsm encode-corpus` on large texts of distinct sentences, through the stub encoder.

    python scripts/bench_memory.py --megabytes 1000 --json memory.json
    python scripts/bench_memory.py --sentences 10000,100000,1000000,10000000 --format jsonl.zst    # is it linear?
    python scripts/bench_memory.py --megabytes 200 --document-bytes 200000000 --format parquet     # one document
    python scripts/bench_memory.py --megabytes 110 --document-bytes 1                              # a million of one sentence each

A text of documents of about 50 kB is made in a temporary folder for each size, one after the other (text and corpus are removed
afterwards; the space needed is said, and looked for, beforehand). Memory is read twice a second: the sum of RSS of the whole process
tree, and of PSS, which counts shared pages once. CPU seconds are of all its processes, start and manifest included; those for each
million *more* are the difference to the size before, so that the start is out of them. Exit code 0 = the peak of RSS is within
--limit-mebibytes at every size. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from process_tree import watch

from lsm.encode.encoder import encoder_info
from lsm.files import write_json

FORMATS = ("jsonl", "jsonl.zst", "jsonl.gz", "parquet", "txt")
STAGES = ("read", "split", "tokenise", "encode", "write")
PARAGRAPH_SENTENCES = 7
CLAUSES = 20_000
COPIED_BYTES = 2**22
SENTENCE_BYTES = 98
"""Of text, the space after it included; measured."""
FILE_SHARE = {"jsonl": 1.02, "txt": 1.0, "parquet": 0.75, "jsonl.zst": 0.5, "jsonl.gz": 0.5}
"""Bytes of the file beside one of text, at most; measured."""
ROW_BYTES = 90
"""Of a corpus beside the vectors, for a sentence, at most; measured."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--megabytes", default="1000", help="sizes of text (millions of bytes), with commas")
    size.add_argument("--sentences", default="", help="or its numbers of sentences, with commas")
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="one row a document, compressed or not, or one long text")
    parser.add_argument("--document-bytes", type=int, default=50_000, help="size of a document, at the least; JSONL takes up to 64 MiB")
    parser.add_argument("--distinct-megabytes", type=float, default=None, help="make so much of the text, and repeat that; not parquet")
    parser.add_argument("--workers", type=int, default=None, help="passed on; default: lsm's own")
    parser.add_argument("--encoder", default="stub")
    parser.add_argument("--limit-mebibytes", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made; default: the system's")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file, after each size")
    options = parser.parse_args()
    if not Path("/proc/self/statm").exists():
        parser.error("reads /proc, which this system has not")
    if options.distinct_megabytes and options.format == "parquet":
        parser.error("--distinct-megabytes: a parquet file cannot be repeated; choose another --format")
    if options.sentences:
        sizes = [int(n) * SENTENCE_BYTES for n in options.sentences.split(",")]
    else:
        sizes = [int(float(n) * 1_000_000) for n in options.megabytes.split(",")]
    needed, free = space_needed(max(sizes), options), shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    print(f"to disk: up to {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free", flush=True)
    if free < needed:
        parser.error("that is not enough space; give --folder on another disk, --format jsonl.zst or a smaller size")
    rows: list[dict[str, Any]] = []
    for n_bytes in sizes:
        row = measured(n_bytes, options)
        if row is None:
            return 1
        rows.append(row | marginal(rows[-1] if rows else None, row))
        if options.json:
            write_json(options.json, {"format": options.format, "encoder": options.encoder, "document_bytes": options.document_bytes,
                                      "limit_mebibytes": options.limit_mebibytes, "rows": rows})  # fmt: skip
    print("\n" + table(rows))
    return 0 if all(row["peak_rss_mebibytes"] <= options.limit_mebibytes for row in rows) else 1


def space_needed(n_bytes: int, options: argparse.Namespace) -> float:
    """Bytes on disk: the file, its corpus, and some room to spare."""
    dim = int(encoder_info(options.encoder).fingerprint["dim"])
    return 1.1 * n_bytes * (FILE_SHARE[options.format] + (2 * dim + ROW_BYTES) / SENTENCE_BYTES)


def measured(n_bytes: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """One size: what encoding took, or None where it failed."""
    with tempfile.TemporaryDirectory(prefix="lsm-memory-", dir=options.folder) as name:
        folder = Path(name)
        text = folder / f"distinct.{options.format}"
        begin = time.monotonic()
        distinct_bytes = min(n_bytes, int(1e6 * (options.distinct_megabytes or n_bytes)))
        times = -(-n_bytes // distinct_bytes)
        text_bytes, n_documents, n_made = (times * n for n in write_text(text, distinct_bytes, options.document_bytes))
        repeat(text, times)
        file_bytes = text.stat().st_size
        print(f"text: {text_bytes / 1e6:,.0f} MB in a file of {file_bytes / 1e6:,.0f} MB, {n_documents:,} documents, {n_made:,} "
              f"{'distinct ' if times == 1 else ''}sentences, made in {time.monotonic() - begin:.0f} s", flush=True)  # fmt: skip
        report = folder / "report.json"
        command = [sys.executable, "-m", "lsm", "encode-corpus", str(text), "--out", str(folder / "corpus"), "--encoder", options.encoder]
        command += ["--json", str(report), "--quiet", *(["--workers", str(options.workers)] if options.workers else [])]
        taken, status = watch(command)
        if status:
            print(f"encode-corpus failed with exit code {status}; by then: {json.dumps(taken)}")
            return None
        counted = json.loads(report.read_text(encoding="utf-8"))["results"]
    n, stages = counted["n_sentences"], counted["stage_seconds"]
    work = sum(stages[stage] for stage in STAGES)
    row = {
        "n_sentences": n, "n_sentences_made": n_made, "times_repeated": times, "n_documents": n_documents,
        "text_bytes": text_bytes, "file_bytes": file_bytes,
        "corpus_bytes": counted["corpus_bytes"], "workers": counted["workers"], **taken,
        "sentences_per_second": round(n / taken["seconds"]),
        "seconds_per_million": round(taken["seconds"] / n * 1e6, 1),
        "cpu_seconds_per_million": round(taken["cpu_seconds"] / n * 1e6, 2),
        "stage_seconds": stages,
        "stage_shares": {stage: round(stages[stage] / work, 4) for stage in STAGES},
        "seconds_before_and_after": round(taken["seconds"] - stages["wall"], 2),
    }  # fmt: skip
    print(f"encoded: {n:,} sentences in {taken['seconds']:,.1f} s, {taken['cpu_seconds']:,.1f} CPU s ({row['sentences_per_second']:,} a "
          f"second), {counted['workers']} workers, corpus {counted['corpus_bytes'] / 2**20:,.0f} MiB")  # fmt: skip
    print(f"time: {', '.join(f'{stage} {share:.1%}' for stage, share in row['stage_shares'].items())}; "
          f"{row['seconds_before_and_after']:,.1f} s before the first shard and after the last")  # fmt: skip
    rss, pss, largest = (taken[f"peak_{name}_mebibytes"] for name in ("rss", "pss", "process"))
    print(f"peak of the process tree: {rss:,.0f} MiB RSS, {pss:,.0f} MiB PSS (largest process {largest:,.0f} MiB; "
          f"{taken['samples']} samples, limit {options.limit_mebibytes} MiB)")  # fmt: skip
    print(f"peak RSS by tenth of the run (MiB): {' '.join(f'{value:.0f}' for value in taken['rss_by_tenth_mebibytes'])}", flush=True)
    return row


def marginal(before: dict[str, Any] | None, row: dict[str, Any]) -> dict[str, float | None]:
    """CPU seconds for each million sentences more than the size before had."""
    more = row["n_sentences"] - before["n_sentences"] if before else 0
    if before is None or more <= 0:
        return {"cpu_seconds_per_million_more": None}
    return {"cpu_seconds_per_million_more": round((row["cpu_seconds"] - before["cpu_seconds"]) / more * 1e6, 2)}


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| sentences | text, MB | file, MB | seconds | CPU seconds | a million | a million more | peak RSS, PSS, MiB | "
             + ", ".join(STAGES) + " |", "|" + "---|" * 9]  # fmt: skip
    for row in rows:
        more = row["cpu_seconds_per_million_more"]
        lines.append(
            f"| {row['n_sentences']:,} | {row['text_bytes'] / 1e6:,.1f} | {row['file_bytes'] / 1e6:,.1f} | {row['seconds']:,.1f} | "
            f"{row['cpu_seconds']:,.1f} | {row['cpu_seconds_per_million']:,.1f} | {'' if more is None else f'{more:,.1f}'} | "
            f"{row['peak_rss_mebibytes']:,.0f}, {row['peak_pss_mebibytes']:,.0f} | "
            f"{', '.join(f'{share:.0%}' for share in row['stage_shares'].values())} |"
        )
    return "\n".join(lines)


def write_text(path: Path, n_bytes: int, document_bytes: int) -> tuple[int, int, int]:
    """Documents of paragraphs of sentences, no two alike; their bytes, their number and that of the sentences."""
    sentences = distinct_sentences()
    a_paragraph = PARAGRAPH_SENTENCES if document_bytes > 1000 else 1
    written = n_documents = n_sentences = 0
    with ExitStack() as stack:
        if path.suffix == ".parquet":
            schema = pa.schema([("text", pa.string())])
            rows = stack.enter_context(pq.ParquetWriter(path, schema))
            write = lambda text: rows.write_table(pa.table({"text": [text]}, schema))  # noqa: E731
        else:
            codec = {".zst": "zstd", ".gz": "gzip"}.get(path.suffix)
            handle = stack.enter_context(pa.output_stream(path, compression=codec, buffer_size=2**20))
            rowed = path.suffix != ".txt"
            write = lambda text: handle.write((json.dumps({"text": text}) + "\n" if rowed else text).encode())  # noqa: E731
        while written < n_bytes:
            paragraphs: list[str] = []
            size = 0
            while size < document_bytes and written + size < n_bytes:
                paragraphs.append(" ".join(islice(sentences, a_paragraph)))
                size += len(paragraphs[-1]) + 2
                n_sentences += a_paragraph
            document = "\n\n".join(paragraphs) + "\n\n"
            write(document)
            written += len(document)
            n_documents += 1
    return written, n_documents, n_sentences


def repeat(path: Path, times: int) -> None:
    """The file so many times over; a compressed one becomes an archive of so many frames."""
    n_bytes = path.stat().st_size
    with open(path, "rb") as source, open(path, "ab") as target:
        for _ in range(1, times):
            source.seek(0)
            for start in range(0, n_bytes, COPIED_BYTES):
                target.write(source.read(min(COPIED_BYTES, n_bytes - start)))


def distinct_sentences() -> Iterator[str]:
    """Two clauses of invented words and a running number: about 100 characters, the same ones on every machine."""
    generator = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(5000)]
    clauses = [" ".join(generator.choices(words, k=generator.randint(4, 11))) for _ in range(CLAUSES)]
    first, second = [clause.capitalize() for clause in clauses], clauses
    number = 0
    while True:
        generator.shuffle(first)
        for one, other in zip(first, second, strict=True):
            number += 1
            yield f"{one} {number} {other}."


if __name__ == "__main__":
    sys.exit(main())
