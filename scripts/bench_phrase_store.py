"""Kinds of phrase store side by side at scale: time and memory of building, recall@10 against exact search, time of a query.

    python scripts/bench_phrase_store.py CORPUS [CORPUS...] --rows 5000000 --out DIR [--kinds ivf-pq flat hnsw:500000]

The distinct vectors of the corpora, less the held-out ones, are filled up to --rows with copies of them to which noise is added: a
random vector of length --noise (theirs is 1), after which the cosine of a copy to its original is 1 / √(1 + noise²). That is written as a
corpus, of which `lsm build-index` makes a store of every kind (KIND:ROWS takes fewer rows). Queries are `perturbed`, stored vectors with
such noise of their own, and `unseen`, the held-out real vectors; none of them is in the index. What is true is found by numpy, comparing
all. Times of queries are on one thread, of building on as many as OMP_NUM_THREADS says; the CPU time beside them is what a machine without
other work would need. DIR/phrase_store.{md,json} is written after every kind; corpora and stores go at the end. A killed run goes on with
the shards it has made. Peak memory is read from /proc (Linux): anonymous memory, without pages of files, which the system
takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

K, BATCH = 10, 64
SHARD_ROWS, DOCUMENT_ROWS, BLOCK_ROWS = 2**18, 2**10, 2**11
SECONDS_OF_QUERIES = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", type=Path, help="folders that encode-corpus wrote, of one encoder")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=["ivf-pq", "flat", "hnsw:500000"], help="KIND or KIND:ROWS")
    parser.add_argument("--noise", type=float, default=0.5, help="length of the noise added to copies and to perturbed queries")
    parser.add_argument("--queries", type=int, default=256, help="of each sort")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the table; large files are made in its folder `work`")
    parser.add_argument("--keep", action="store_true", help="leave corpora and stores in DIR/work")
    parser.add_argument("--measure", nargs=2, type=Path, metavar=("STORE", "QUERIES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return 0
    if not options.corpora or options.out is None:
        parser.error("give a CORPUS and --out DIR")
    runs = [(kind, int(rows or options.rows)) for kind, _, rows in (item.partition(":") for item in options.kinds)]
    work = options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    rows_done: list[dict[str, Any]] = []
    for kind, n_rows in runs:
        corpus, queries = work / f"corpus-{n_rows}", work / f"queries-{n_rows}.npz"
        if not queries.exists():
            say(f"making a corpus of {n_rows:,} rows")
            make_corpus(corpus, queries, n_rows, options)
            say(f"exact neighbours of 2 × {options.queries} queries")
            find_truth(corpus, queries)
        needed, free = n_rows * 384 * 4 * 1.3 if kind == "flat" else 0, available_bytes()
        if needed > free:
            rows_done.append({"kind": kind, "rows": n_rows, "skipped": f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"})
        else:
            rows_done.append({"kind": kind, "rows": n_rows, **bench(kind, corpus, queries, work / f"{kind}-{n_rows}")})
        write(options, rows_done)
        say(table(rows_done))
    if not options.keep:
        shutil.rmtree(work)
    return 0


def make_corpus(out: Path, queries: Path, n_rows: int, options: argparse.Namespace) -> None:
    """The corpus of real vectors and noisy copies, and the queries to it (without what is true yet)."""
    import pyarrow as pa

    from lsm.corpus import format as layout
    from lsm.corpus.reader import Corpus
    from lsm.corpus.writer import read_done, write_manifest, write_shard_arrays

    sources = [Corpus.open(path) for path in options.corpora]
    for source in sources[1:]:
        source.require_encoder(sources[0].encoder)
    rng = np.random.default_rng([options.seed, 0])
    z_ND = np.concatenate([source.vector_at(np.arange(source.n_sentences)) for source in sources])
    texts = [text for source in sources for text in source.text_at(np.arange(source.n_sentences))]
    _, first_N = np.unique(z_ND.view(f"V{z_ND.itemsize * z_ND.shape[1]}").ravel(), return_index=True)
    first_N = rng.permutation(first_N)
    unseen_QD, base_N = unit(z_ND[first_N[: options.queries]]), first_N[options.queries :]
    n_shards = -(-n_rows // SHARD_ROWS)
    for shard in range(n_shards):
        if read_done(out, shard):
            continue
        rng = np.random.default_rng([options.seed, 1, shard])
        start, stop = shard * SHARD_ROWS, min(n_rows, (shard + 1) * SHARD_ROWS)
        row = np.arange(start, stop)
        of = base_N[np.where(row < len(base_N), row % len(base_N), rng.integers(0, len(base_N), len(row)))]
        shard_ND = np.empty((len(row), z_ND.shape[1]), np.float16)
        for first in range(0, len(row), BLOCK_ROWS):
            some = slice(first, first + BLOCK_ROWS)
            real_ND = unit(z_ND[of[some]])
            shard_ND[some] = np.where(row[some, None] < len(base_N), real_ND, noisy(real_ND, options.noise, rng))
        ids = [f"d{number}" for number in range(start // DOCUMENT_ROWS, -(-stop // DOCUMENT_ROWS))]
        lengths = [min(DOCUMENT_ROWS, stop - start - first) for first in range(0, stop - start, DOCUMENT_ROWS)]
        zeros = np.zeros(len(row), np.int64)
        sentences = {
            "doc_id": pa.DictionaryArray.from_arrays(pa.array(np.repeat(np.arange(len(ids)), lengths).astype(np.int32)), pa.array(ids)),
            "text": [f"{texts[source]} [{number}]" for source, number in zip(of, row, strict=True)],
            "index": row % DOCUMENT_ROWS, "section": zeros, "part": zeros, "char_start": zeros, "char_end": zeros,
            "gap": [" "] * len(row), "n_tokens": zeros, "truncated": zeros.astype(bool),
        }  # fmt: skip
        documents = [
            {"doc_id": name, "source": "made", "title": "", "shard": shard, "first_row": place * DOCUMENT_ROWS, "n_sentences": length,
             "lead": "", "text_sha256": "", "n_characters": 0}
            for place, (name, length) in enumerate(zip(ids, lengths, strict=True))
        ]  # fmt: skip
        arrays = [pa.array(sentences[field.name]).cast(field.type) for field in layout.SENTENCE_SCHEMA]
        write_shard_arrays(
            out, shard, {layout.SEMANTIC: shard_ND},
            pa.Table.from_arrays(arrays, schema=layout.SENTENCE_SCHEMA), pa.Table.from_pylist(documents, schema=layout.DOCUMENT_SCHEMA),
        )  # fmt: skip
    write_manifest(out, n_shards, sources[0].encoder, sources[0].manifest["segmentation"])
    rng = np.random.default_rng([options.seed, 2])
    stored_QD = Corpus.open(out).vector_at(rng.choice(n_rows, options.queries, replace=False))
    perturbed_QD = noisy(unit(stored_QD), options.noise, rng)
    np.savez(queries, perturbed=perturbed_QD, unseen=unseen_QD, n_real=min(n_rows, len(base_N)))


def find_truth(corpus: Path, queries: Path) -> None:
    """Add the rows of each query's nearest to the file of queries: all are compared, by numpy, shard by shard."""
    held = dict(np.load(queries))
    names = ("perturbed", "unseen")
    q_QD = np.concatenate([held[name] for name in names])
    best_QK, rows_QK = np.full((len(q_QD), K), -2.0, np.float32), np.full((len(q_QD), K), -1, np.int64)
    for start, z_ND in blocks(corpus):
        score_QN = q_QD @ unit(z_ND).T
        width = max(int((score_QN > best_QK[:, -1:]).sum(1).max()), 1)  # few beat the tenth best so far
        near = np.argpartition(-score_QN, width - 1, axis=1)[:, :width]
        scores = np.concatenate([best_QK, np.take_along_axis(score_QN, near, 1)], 1)
        rows = np.concatenate([rows_QK, near + start], 1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        best_QK, rows_QK = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    for number, name in enumerate(names):
        held[f"true_{name}"] = rows_QK[number * len(q_QD) // 2 : (number + 1) * len(q_QD) // 2]
        held[f"cosine_{name}"] = best_QK[number * len(q_QD) // 2 : (number + 1) * len(q_QD) // 2]
    np.savez(queries, **held)


def blocks(corpus: Path, size: int = 2 * BLOCK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
    """First row and vectors of the corpus, some thousand at a time."""
    start = 0
    for path in sorted(corpus.glob("shards/*/semantic.npy")):
        n = len(np.load(path, mmap_mode="r"))
        for first in range(0, n, size):
            z_ND = np.array(np.load(path, mmap_mode="r")[first : first + size])
            yield start + first, z_ND
        start += n


def bench(kind: str, corpus: Path, queries: Path, store: Path) -> dict[str, Any]:
    """Build through the command line, then open and search in a process of its own."""
    report = store.with_name(store.name + "-report.json")
    command = [sys.executable, "-m", "lsm", "build-index", "--corpus", str(corpus), "--out", str(store), "--index", kind]
    begin, cpu_before = time.monotonic(), sum(os.times()[2:4])
    build_peak = watch([*command, "--json", str(report), "--device", "cpu"])
    seconds, cpu_seconds = time.monotonic() - begin, sum(os.times()[2:4]) - cpu_before
    measured = json.loads(report.read_text(encoding="utf-8"))["results"]
    found = json.loads(subprocess.run(
        [sys.executable, __file__, "--measure", str(store), str(queries)], check=True, capture_output=True, text=True
    ).stdout)  # fmt: skip
    for file in store.parent.glob(store.name + "*"):
        file.unlink()
    return {
        "build_seconds": round(seconds, 1),
        "build_cpu_seconds": round(cpu_seconds, 1),
        "build_peak_mebibytes": build_peak,
        "reported_at_build": {key: measured[key] for key in ("bytes", "effort", "measured", "n_sentences")},
        "n_real": int(np.load(queries)["n_real"]),
        **found,
    }


def measure(path: Path, queries: Path) -> dict[str, Any]:
    """Open a store and search it on one thread."""
    import faiss

    from lsm.decode.phrase_store import PhraseStore

    faiss.omp_set_num_threads(1)
    before = anonymous_mebibytes(os.getpid())
    begin = time.perf_counter()
    store = PhraseStore.open(path)
    found: dict[str, Any] = {"open_seconds": round(time.perf_counter() - begin, 2)}
    found["open_mebibytes"] = round(anonymous_mebibytes(os.getpid()) - before)
    held = np.load(queries)
    for name in ("perturbed", "unseen"):
        q_QD, true_QK = held[name], held[f"true_{name}"]
        for size in (1, BATCH):
            store.search(q_QD[:size], K)
            answers, begin, cpu_begin = [], time.perf_counter(), time.process_time()
            for first in range(0, len(q_QD), size):
                answers.append(store.search(q_QD[first : first + size], K)[1])
                if time.perf_counter() - begin > SECONDS_OF_QUERIES:
                    break
            rows_QK = np.concatenate(answers)
            found[f"{name}_milliseconds_batch_{size}"] = round((time.perf_counter() - begin) / len(rows_QK) * 1000, 3)
            found[f"{name}_cpu_milliseconds_batch_{size}"] = round((time.process_time() - cpu_begin) / len(rows_QK) * 1000, 3)
        hits = [len(set(rows) & set(true)) for rows, true in zip(rows_QK.tolist(), true_QK.tolist(), strict=False)]
        found[f"{name}_recall_at_10"] = round(sum(hits) / K / len(hits), 4)
        found[f"{name}_queries"] = len(hits)
        found[f"{name}_mean_cosine_of_nearest"] = round(float(held[f"cosine_{name}"][:, 0].mean()), 3)
    return found


def write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The table as markdown and as JSON."""
    from lsm.provenance import git_hash, versions

    about = {
        "corpora": [path.name for path in options.corpora], "noise": options.noise, "queries": options.queries, "seed": options.seed,
        "threads_building": os.environ.get("OMP_NUM_THREADS", "all"), "cpu": platform.processor() or platform.machine(), "git": git_hash(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), "versions": versions(),
    }  # fmt: skip
    (options.out / "phrase_store.json").write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    (options.out / "phrase_store.md").write_text(table(rows) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """One line a kind."""
    head = (
        "| kind | rows | real | build, s (CPU) | peak memory, MiB | index + vectors on disk, MiB | open, MiB | cells or breadth | "
        "reported recall@10, noise, like unseen | recall@10 perturbed | unseen | ms a query, batch 1 (CPU) | batch 64 (CPU) |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in rows:
        if "skipped" in row:
            lines.append(f"| {row['kind']} | {row['rows']:,} | skipped: {row['skipped']} |" + " |" * 10)
            continue
        size = row["reported_at_build"]["bytes"]
        disk = (size["index"] + size.get(".vectors.npy", 0)) / 2**20
        found, effort = row["reported_at_build"]["measured"], row["reported_at_build"]["effort"]
        breadth = effort["breadth"] if effort else ""
        reported = ", ".join(f"{found[key]:.3f}" for key in ("recall_at_10", "recall_at_10_unseen") if found[key] is not None)
        alone, together = (
            f"{row[f'unseen_milliseconds_batch_{n}']:.2f} ({row[f'unseen_cpu_milliseconds_batch_{n}']:.2f})" for n in (1, BATCH)
        )
        lines.append(
            f"| {row['kind']} | {row['rows']:,} | {row['n_real']:,} | {row['build_seconds']:,.0f} ({row['build_cpu_seconds']:,.0f}) | "
            f"{row['build_peak_mebibytes']:,.0f} | "
            f"{disk:,.0f} | {row['open_mebibytes']:,.0f} | {breadth} | {reported} | "
            f"{row['perturbed_recall_at_10']:.3f} | {row['unseen_recall_at_10']:.3f} | "
            f"{alone} | {together} |"
        )
    return "\n".join(lines)


def watch(command: list[str]) -> float:
    """Run the command; the peak of its anonymous memory, MiB, read five times a second."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, anonymous_mebibytes(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return round(peak, 1)


def anonymous_mebibytes(pid: int) -> float:
    """Memory of a process that is no page of a file; 0 where that cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def available_bytes() -> float:
    """Memory that may be taken; without limit where that cannot be read."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    return sum(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024


def unit(z_ND: np.ndarray) -> np.ndarray:
    z_ND = z_ND.astype(np.float32)
    return z_ND / np.linalg.norm(z_ND, axis=1, keepdims=True)


def noisy(z_ND: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    scale = np.float32(noise / np.sqrt(z_ND.shape[1]))
    return unit(z_ND + rng.standard_normal(z_ND.shape, dtype=np.float32) * scale)


def say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
