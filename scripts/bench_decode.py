"""Wording planned sentences with the frozen LM: `lsm.lm.generation` beside Hugging Face's `generate` at several batch sizes, greedy.

    lsm pretrain ... --out RUN && lsm build-index --corpus CORPUS --out STORE
    python scripts/bench_decode.py RUN --corpus HELD_OUT --index STORE --out RESULTS.json

A document of HELD_OUT is read, `--n` sentences after it are planned and snapped, and the adapter turns each plan into a soft prefix.
Both sides then write from the same prefixes, in one process on the same threads: the most probable token each time, no run of three tokens
twice (HF: no_repeat_ngram_size) or no such rule (`--no-repeat 0`). The adapter's lexical lift and the presence penalty, which `generate`
does not know, are off. Seconds are of the wall and of the CPU; the latter are not disturbed by what else runs on the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsm.corpus.reader import Corpus
from lsm.decode.load import DecoderSource
from lsm.decode.vectors import unit
from lsm.files import write_json
from lsm.latent.rollout import rollout
from lsm.latent.transformer import LatentTransformer
from lsm.lm.frozen import FrozenLM
from lsm.lm.generation import Sampling, generate_ids
from lsm.provenance import report as stamped
from lsm.write.snap import Neighbours

READ = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run of lsm pretrain that plans")
    parser.add_argument("--corpus", type=Path, required=True, help="encoded held-out documents")
    parser.add_argument("--index", type=Path, required=True, help="phrase store that plans are snapped to")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=250)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--no-repeat", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 32, 250, 8, 1])
    parser.add_argument("--adapter")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    corpus = Corpus.open(options.corpus)
    source = DecoderSource(encoder=corpus.encoder, index=options.index, adapter=options.adapter)
    decoder = source.prefix()
    prefix_BPH, _ = decoder.conditions(plans(options.run, corpus, options.n, Neighbours(source.store(), 16)))
    sampling = Sampling(max_new_tokens=options.max_new_tokens, no_repeat_tokens=options.no_repeat)
    begun = time.perf_counter()
    generate_ids(decoder.lm, prefix_BPH[:8], Sampling(max_new_tokens=4))  # the first pass prepares what later ones use again
    ours, seconds, cpu_seconds = timed(lambda: generate_ids(decoder.lm, prefix_BPH, sampling))
    lengths = np.array([len(row) + 1 for row in ours])
    rows: list[dict[str, Any]] = [
        {"by": "lsm", "batch_size": options.n, "seconds": seconds, "cpu_seconds": cpu_seconds, "same_texts": options.n}
    ]
    results: dict[str, Any] = {
        "n": options.n, "threads": options.threads, "dtype": str(decoder.lm.dtype), "no_repeat_tokens": options.no_repeat,
        "tokens": {"mean": float(lengths.mean()), "longest": int(lengths.max()), "cut": int((lengths > options.max_new_tokens).sum())},
        "rows": rows,
    }  # fmt: skip
    for size in options.batch_sizes:
        theirs, seconds, cpu_seconds = timed(lambda size=size: hugging_face(decoder.lm, prefix_BPH, sampling, size))
        differing = [n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        rows.append(
            {"by": "generate", "batch_size": size, "seconds": seconds, "cpu_seconds": cpu_seconds, "same_texts": options.n - len(differing)}
            | {"gaps": [gap(decoder.lm, prefix_BPH[n], ours[n], theirs[n]) for n in differing]}
        )
        best = min(rows[1:], key=lambda row: row["cpu_seconds"])
        results |= {
            "best_batch_size": best["batch_size"],
            "times_faster_cpu": best["cpu_seconds"] / rows[0]["cpu_seconds"],
            "times_faster_wall": min(row["seconds"] for row in rows[1:]) / rows[0]["seconds"],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, stamped(results, seed=0, device="cpu", elapsed_seconds=time.perf_counter() - begun))
        print(rows[-1], f"ours {rows[0]['cpu_seconds']:.1f} CPU s", flush=True)
    print(f"{results['times_faster_cpu']:.2f} times as fast as generate at its best batch size, {results['best_batch_size']} (CPU seconds)")


def plans(run: Path, corpus: Corpus, n: int, snap: Neighbours) -> np.ndarray:
    """`n` snapped plans after the first sentences of the first document that has enough."""
    document = next(doc for doc in range(corpus.n_documents) if len(corpus.vectors(doc)) >= READ)
    z_SD = torch.from_numpy(unit(corpus.vectors(document)[:READ]))
    return rollout(LatentTransformer.from_pretrained(run), z_SD, n, on_step=lambda step, z_D, read_SD: snap(z_D, read_SD)).numpy()


def timed(work: Callable[[], list[list[int]]]) -> tuple[list[list[int]], float, float]:
    """What the work gives, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


@torch.inference_mode()
def hugging_face(lm: FrozenLM, prefix_BPH: Tensor, sampling: Sampling, batch_size: int) -> list[list[int]]:
    """The same by `generate` with its own attention (SDPA) and cache."""
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("sdpa")
    end, rows = lm.tokens.end_id, []
    for part_BPH in prefix_BPH.split(batch_size):
        found_BT = lm.model.generate(
            inputs_embeds=part_BPH.to(lm.dtype), attention_mask=torch.ones(part_BPH.shape[:2], dtype=torch.int64), do_sample=False,
            max_new_tokens=sampling.max_new_tokens, no_repeat_ngram_size=sampling.no_repeat_tokens or None,
            pad_token_id=end, eos_token_id=end,
        )  # fmt: skip
        rows += [ids[: ids.index(end)] if end in ids else ids for ids in found_BT.tolist()]
    lm.model.set_attn_implementation(before)
    return rows


@torch.inference_mode()
def gap(lm: FrozenLM, prefix_PH: Tensor, ours: list[int], theirs: list[int]) -> float:
    """Nats between the two tokens at which two texts part: near zero where rounding decides."""
    at = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    tokens = [row[at] if at < len(row) else lm.tokens.end_id for row in (ours, theirs)]
    logits_V = lm.step(torch.cat([prefix_PH[None], lm.embed(torch.tensor([ours[:at]], dtype=torch.int64))], dim=1))[0][0]
    return float((logits_V[tokens[0]] - logits_V[tokens[1]]).abs())


if __name__ == "__main__":
    main()
