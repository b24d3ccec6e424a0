"""What it costs to open a corpus of 10⁸ rows and to draw from it, in time and memory.

    python scripts/bench_corpus_scale.py --json scale.json

A corpus is made in a temporary folder and removed afterwards. Its vectors are sparse files (zeros that take no room on disk, so that
a draw costs no seek: on a disk add one for each row) and its tables of sentences links to one; ids and hashes of documents are real,
the tables, index and manifest are written by the code that writes every corpus. Allow 2 GB on disk for 10⁸ rows and some minutes, most
of which make the corpus. Each line is measured in a process of its own: seconds from the end of the imports on, and by how much the
peak of its memory (RSS, maps that were touched included) lies above what it held then. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lsm.corpus.reader import Corpus
from lsm.corpus.sampler import PackedSampler, split_documents

CONTEXT, BATCH_ROWS, DRAWN = 128, 32, 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**8)
    parser.add_argument("--document-sentences", type=int, default=250)
    parser.add_argument("--shard-rows", type=int, default=16_384)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made; default: the system's")
    parser.add_argument("--without-index", action="store_true", help="as a corpus of an older lsm, which has none")
    parser.add_argument("--corpus", type=Path, default=None, help="measure this corpus and make none")
    parser.add_argument("--measure", choices=tuple(MEASURES), default=None, help="one line, in this process")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(MEASURES[options.measure], options.corpus)))
        return 0
    with tempfile.TemporaryDirectory(prefix="lsm-scale-", dir=options.folder) as name:
        path = options.corpus or Path(name) / "corpus"
        if options.corpus is None:
            begin = time.monotonic()
            make(path, options.rows, options.document_sentences, options.shard_rows, options.dim)
            print(f"made in {time.monotonic() - begin:.0f} s", flush=True)
        if options.without_index:
            shutil.rmtree(path / "index")
        corpus = Corpus.open(path)
        print(f"{corpus.n_sentences:,} rows, {corpus.n_documents:,} documents, {corpus.n_shards:,} shards", flush=True)
        rows = [line(path, measure) for measure in MEASURES] + [inspected(path)]
        results = {"n_rows": corpus.n_sentences, "n_documents": corpus.n_documents, "n_shards": corpus.n_shards, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def make(path: Path, n_rows: int, n_sentences: int, shard_rows: int, dim: int) -> None:
    """A corpus of equally long documents; the last shard is as full as the others, so that there may be a few more rows than asked for."""
    from lsm.corpus import format as layout
    from lsm.corpus.npy import npy_header
    from lsm.corpus.writer import SegmentedDocument, content_sha256, write_manifest, write_parquet, write_shard
    from lsm.files import DONE_MARKER, write_json
    from lsm.text.segment import Sentence

    each = max(1, shard_rows // n_sentences)
    per_shard, n_shards = each * n_sentences, -(-n_rows // (each * n_sentences))
    sentences = [Sentence("A sentence.", 12 * k, 12 * k + 11, " ", k // 10, 0) for k in range(n_sentences)]
    model = [SegmentedDocument(str(k), "made", "", "0" * 64, 12 * n_sentences, "", sentences) for k in range(each)]
    write_shard(path, 0, model, np.zeros((per_shard, dim), np.float16), np.full(per_shard, 4), np.zeros(per_shard, bool))
    first = layout.shard_folder(path, 0)
    done = json.loads((first / DONE_MARKER).read_text(encoding="utf-8"))
    (first / layout.SENTENCES).rename(path / "sentences")
    documents = Corpus(path, {"shards": [done], "parts": []}).shard_documents(0)
    shutil.rmtree(first)
    header = npy_header((per_shard, dim), "<f2")
    for shard in range(n_shards):
        folder = layout.shard_folder(path, shard)
        folder.mkdir(parents=True)
        with open(folder / layout.SEMANTIC, "wb") as handle:
            handle.write(header)
            handle.truncate(len(header) + 2 * per_shard * dim)
        os.link(path / "sentences", folder / layout.SENTENCES)
        ids = [f"collection/{shard * each + k:09d}.txt" for k in range(each)]
        hashes = [hashlib.sha256(doc_id.encode()).hexdigest() for doc_id in ids]
        columns = {"doc_id": ids, "text_sha256": hashes, "shard": np.full(each, shard, np.int32)}
        table = documents
        for name, values in columns.items():
            table = table.set_column(table.schema.get_field_index(name), layout.DOCUMENT_SCHEMA.field(name), [values])
        write_parquet(folder / layout.DOCUMENTS, table)
        write_json(folder / DONE_MARKER, done | {"content_sha256": content_sha256(zip(ids, hashes, strict=True))})
    write_manifest(path, n_shards, {"name": "made", "dim": dim}, {})
    (path / "sentences").unlink()


def open_it(path: Path) -> Corpus:
    return Corpus.open(path)


def draw(path: Path) -> np.ndarray:
    corpus = Corpus.open(path)
    return corpus.vector_at(np.random.default_rng(0).integers(0, corpus.n_sentences, DRAWN))


def draw_documents(path: Path) -> list[np.ndarray]:
    corpus = Corpus.open(path)
    return [corpus.vectors(int(doc)) for doc in np.random.default_rng(0).integers(0, corpus.n_documents, DRAWN)]


def pack(path: Path) -> PackedSampler:
    corpus = Corpus.open(path)
    return PackedSampler(corpus, np.arange(corpus.n_documents), context=CONTEXT, rows=BATCH_ROWS)


def first_batch(path: Path) -> None:
    pack(path).batch(0)


def ten_batches(path: Path) -> None:
    sampler = pack(path)
    for index in range(11):
        sampler.batch(index)


def split(path: Path) -> None:
    split_documents(Corpus.open(path).doc_ids, 0.1)


MEASURES: dict[str, Callable[[Path], object]] = {
    "Corpus.open": open_it,
    "open and 1,000 random sentences": draw,
    "open and 1,000 random documents": draw_documents,
    "open and PackedSampler": pack,
    "open, PackedSampler and first batch": first_batch,
    "open, PackedSampler and ten more batches": ten_batches,
    "open and split by document id": split,
}


def measured(what: Callable[[Path], object], path: Path) -> dict[str, float]:
    """Seconds, those of the processor alone (other work on the machine does not count in them), and MiB above what was held before."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    begin, busy = time.monotonic(), time.process_time()
    kept = what(path)
    seconds, busy = time.monotonic() - begin, time.process_time() - busy
    peak = memory("VmHWM") - before
    del kept
    return {"seconds": round(seconds, 4), "cpu_seconds": round(busy, 4), "mebibytes": round(peak, 1)}


def memory(name: str) -> float:
    """A line of /proc/self/status in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(entry.split()[1]) for entry in status if entry.startswith(f"{name}:")) / 1024


def line(path: Path, measure: str) -> dict[str, Any]:
    """One measurement, printed; the second of two, so that tables and index are in the system's cache."""
    command = [sys.executable, __file__, "--measure", measure, "--corpus", str(path)]
    found = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(2)][-1]
    wall, busy = found["seconds"] * 1e3, found["cpu_seconds"] * 1e3
    print(f"{measure:42s} {wall:9.1f} ms  {busy:9.1f} ms CPU  {found['mebibytes']:7.1f} MiB", flush=True)
    return {"what": measure, **found}


def inspected(path: Path) -> dict[str, Any]:
    """`lsm inspect` as a whole, the start of Python included."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "lsm", "inspect", str(path)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begin
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "lsm", "--version"], check=False, stdout=subprocess.DEVNULL)
    bare = time.monotonic() - begin
    print(f"{'lsm inspect':42s} {seconds * 1e3:9.1f} ms  (lsm --version {bare * 1e3:.0f} ms)", flush=True)
    return {"what": "lsm inspect", "seconds": round(seconds, 4), "seconds_of_lsm_version": round(bare, 4)}


if __name__ == "__main__":
    sys.exit(main())
