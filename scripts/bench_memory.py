"""Peak memory of `lsm encode-corpus` on a large text of distinct sentences, through the stub encoder.

    python scripts/bench_memory.py --megabytes 1000 --json memory.json
    python scripts/bench_memory.py --megabytes 200 --document-bytes 200000000 --format parquet     # one document
    python scripts/bench_memory.py --megabytes 110 --document-bytes 1                              # a million of one sentence each

A text of documents of about 50 kB is made in a temporary folder (it and the corpus are removed afterwards; allow four times its
size on disk). The memory of the whole process tree is read from /proc twice a second: the sum of RSS counts pages that processes
share once for each, the sum of PSS counts them once. Exit code 0 = the peak of RSS is within --limit-mebibytes. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PARAGRAPH_SENTENCES = 7
CLAUSES = 20_000
EVERY_SECONDS = 0.5
SAY_EVERY = 60
"""Samples between two lines on what is held now."""
SIZE_FACTOR = 4
"""Bytes on disk beside one byte of text: the text itself, its corpus, and room to spare."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the text (millions of bytes)")
    parser.add_argument("--format", choices=("jsonl", "parquet", "txt"), default="jsonl", help="one row a document, or one long text")
    parser.add_argument("--document-bytes", type=int, default=50_000, help="size of a document, at the least; JSONL takes up to 64 MiB")
    parser.add_argument("--workers", type=int, default=None, help="passed on; default: lsm's own")
    parser.add_argument("--encoder", default="stub")
    parser.add_argument("--limit-mebibytes", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made; default: the system's")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")
    options = parser.parse_args()
    if not Path("/proc/self/statm").exists():
        parser.error("reads /proc, which this system has not")
    wanted = options.megabytes * 1_000_000
    with tempfile.TemporaryDirectory(prefix="lsm-memory-", dir=options.folder) as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < wanted * SIZE_FACTOR:
            parser.error(f"{folder.parent} has {free / 1e9:.1f} GB free, {wanted * SIZE_FACTOR / 1e9:.1f} GB are needed; give --folder")
        text = folder / f"distinct.{options.format}"
        begin = time.monotonic()
        n_documents, n_sentences = write_text(text, wanted, options.document_bytes)
        print(f"text: {text.stat().st_size / 1e6:,.0f} MB, {n_documents:,} documents, {n_sentences:,} distinct sentences, made in "
              f"{time.monotonic() - begin:.0f} s", flush=True)  # fmt: skip
        report = folder / "report.json"
        command = [sys.executable, "-m", "lsm", "encode-corpus", str(text), "--out", str(folder / "corpus"), "--encoder", options.encoder]
        command += ["--json", str(report), "--quiet", *(["--workers", str(options.workers)] if options.workers else [])]
        peaks, seconds, status = watch(command)
        if status:
            print(f"encode-corpus failed with exit code {status}")
            return 1
        counted = json.loads(report.read_text(encoding="utf-8"))["results"]
    results = {
        "text_bytes": wanted, "format": options.format, "encoder": options.encoder, "workers": counted["workers"],
        "n_documents": n_documents, "n_sentences_made": n_sentences, "n_sentences": counted["n_sentences"],
        "corpus_bytes": counted["corpus_bytes"], "seconds": round(seconds, 1),
        "sentences_per_second": round(counted["n_sentences"] / seconds), "limit_mebibytes": options.limit_mebibytes, **peaks,
    }  # fmt: skip
    print(f"encoded: {results['n_sentences']:,} sentences in {seconds:,.1f} s ({results['sentences_per_second']:,} a second), "
          f"{counted['workers']} workers, corpus {counted['corpus_bytes'] / 2**20:,.0f} MiB")  # fmt: skip
    rss, pss, largest = (peaks[f"peak_{name}_mebibytes"] for name in ("rss", "pss", "process"))
    print(f"peak of the process tree: {rss:,.0f} MiB RSS, {pss:,.0f} MiB PSS (largest process {largest:,.0f} MiB; "
          f"{peaks['samples']} samples, limit {options.limit_mebibytes} MiB)")  # fmt: skip
    print(f"peak RSS by tenth of the run (MiB): {' '.join(f'{value:.0f}' for value in peaks['rss_by_tenth_mebibytes'])}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if peaks["peak_rss_mebibytes"] <= options.limit_mebibytes else 1


def write_text(path: Path, n_bytes: int, document_bytes: int) -> tuple[int, int]:
    """Documents of paragraphs of sentences, no two alike; their number and that of the sentences."""
    sentences = distinct_sentences()
    a_paragraph = PARAGRAPH_SENTENCES if document_bytes > 1000 else 1
    written = n_documents = n_sentences = 0
    with ExitStack() as stack:
        if path.suffix == ".parquet":
            schema = pa.schema([("text", pa.string())])
            rows = stack.enter_context(pq.ParquetWriter(path, schema))
            write = lambda text: rows.write_table(pa.table({"text": [text]}, schema))  # noqa: E731
        else:
            handle = stack.enter_context(open(path, "w", encoding="utf-8"))
            write = handle.write if path.suffix == ".txt" else lambda text: handle.write(json.dumps({"text": text}) + "\n")
        while written < n_bytes:
            paragraphs: list[str] = []
            size = 0
            while size < document_bytes:
                paragraphs.append(" ".join(islice(sentences, a_paragraph)))
                size += len(paragraphs[-1]) + 2
                n_sentences += a_paragraph
            document = "\n\n".join(paragraphs) + "\n\n"
            write(document)
            written += len(document)
            n_documents += 1
    return n_documents, n_sentences


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


def watch(command: list[str]) -> tuple[dict[str, Any], float, int]:
    """Run the command; peaks of its process tree, wall time, exit code."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples: list[tuple[float, float, float]] = []
    while process.poll() is None:
        each = [memory(pid) for pid in tree(process.pid)]
        if each:
            samples.append((sum(rss for rss, _ in each), sum(pss for _, pss in each), max(rss for rss, _ in each)))
            if len(samples) % SAY_EVERY == 0:
                print(f"  {time.monotonic() - begin:.0f} s: {samples[-1][0]:.0f} MiB RSS, {samples[-1][1]:.0f} MiB PSS", flush=True)
        time.sleep(EVERY_SECONDS)
    seconds = time.monotonic() - begin
    totals = [sample[0] for sample in samples]
    edges = [round(len(totals) * i / 10) for i in range(11)]
    tenths = [max(totals[a:b]) for a, b in pairwise(edges) if b > a]
    peaks = {
        "peak_rss_mebibytes": round(max(totals), 1),
        "peak_pss_mebibytes": round(max(sample[1] for sample in samples), 1),
        "peak_process_mebibytes": round(max(sample[2] for sample in samples), 1),
        "rss_by_tenth_mebibytes": [round(value, 1) for value in tenths],
        "samples": len(samples),
    }
    return peaks, seconds, process.returncode


def tree(root: int) -> list[int]:
    """The process and everything below it."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                todo += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS of a process in MiB; zeros when it has ended."""
    try:
        rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, IndexError):
        return 0.0, 0.0
    pss = next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 1024
    return rss, pss


if __name__ == "__main__":
    sys.exit(main())
