"""Wording planned sentences with the frozen LM: `lsm.lm.generation` beside Hugging Face's `generate` at several batch sizes, greedy.

    lsm pretrain ... --out RUN && lsm build-index --corpus CORPUS --out STORE
    python scripts/bench_decode.py RUN --corpus HELD_OUT --index STORE --out RESULTS.json

A document of HELD_OUT is read, `--n` sentences after it are planned and snapped, and the adapter turns each plan into a soft prefix and a
lexical lift. Both sides then write from the same prefixes with the same lift (to `generate` it is added where it is cheapest, before its
output layer), in one process on the same threads: the most probable token each time, no run of three tokens twice (no_repeat_ngram_size).
The presence penalty, which `generate` does not know, is off. Seconds are of the wall and of the CPU; the latter do not count what else runs
on the machine.
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
from lsm.decode.decoders import PrefixDecoder
from lsm.decode.load import DecoderSource
from lsm.decode.vectors import unit
from lsm.files import write_json
from lsm.latent.rollout import rollout
from lsm.latent.transformer import LatentTransformer
from lsm.lm.generation import Bias, Sampling, generate_ids
from lsm.provenance import report as stamped
from lsm.write.snap import Neighbours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run of lsm pretrain that plans")
    parser.add_argument("--corpus", type=Path, required=True, help="encoded held-out documents")
    parser.add_argument("--index", type=Path, required=True, help="phrase store that plans are snapped to")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=250)
    parser.add_argument("--read", type=int, default=20, help="sentences read before the first plan")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--no-repeat", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 32, 250, 8, 1])
    parser.add_argument("--rows", type=int, default=256, help="rows that ours takes at once, as the prefix decoder does")
    parser.add_argument("--adapter")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    corpus = Corpus.open(options.corpus)
    source = DecoderSource(encoder=corpus.encoder, index=options.index, adapter=options.adapter)
    decoder = source.prefix()
    z_BD = plans(options.run, corpus, options.read, options.n, Neighbours(source.store(), 16))
    prefix_BPH, bias = decoder.conditions(z_BD)
    sampling = Sampling(max_new_tokens=options.max_new_tokens, no_repeat_tokens=options.no_repeat)
    begun = time.perf_counter()
    generate_ids(decoder.lm, prefix_BPH[:8], Sampling(max_new_tokens=4), bias=bias)  # the first pass prepares what later ones use again
    ours, seconds, cpu_seconds = timed(lambda: in_parts(decoder, z_BD, sampling, options.rows))
    lengths = np.array([min(len(row) + 1, options.max_new_tokens) for row in ours])  # the end token too
    rows: list[dict[str, Any]] = [
        {"by": "lsm", "batch_size": options.rows, "seconds": seconds, "cpu_seconds": cpu_seconds, "same_texts": options.n}
    ]
    results: dict[str, Any] = {
        "n": options.n, "threads": options.threads, "dtype": str(decoder.lm.dtype), "no_repeat_tokens": options.no_repeat,
        "tokens": {"mean": float(lengths.mean()), "longest": int(lengths.max())},
        "cut": sum(len(row) == options.max_new_tokens for row in ours),
        "rows": rows,
    }  # fmt: skip
    for size in options.batch_sizes:
        theirs, seconds, cpu_seconds = timed(lambda size=size: hugging_face(decoder, z_BD, sampling, size))
        differing = [n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        rows.append(
            {"by": "generate", "batch_size": size, "seconds": seconds, "cpu_seconds": cpu_seconds, "same_texts": options.n - len(differing)}
            | {"parted_at": [first_difference(ours[n], theirs[n]) for n in differing]}
        )
        best = min(rows[1:], key=lambda row: row["cpu_seconds"])
        results |= {
            "best_batch_size": best["batch_size"],
            "times_faster_cpu": best["cpu_seconds"] / rows[0]["cpu_seconds"],
            "times_faster_wall": min(row["seconds"] for row in rows[1:]) / rows[0]["seconds"],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, stamped(results, seed=0, device="cpu", elapsed_seconds=time.perf_counter() - begun))
        print(rows[-1], f"ours {rows[0]['cpu_seconds']:.1f} CPU s, {rows[0]['seconds']:.1f} s", flush=True)
    print(f"{results['times_faster_cpu']:.2f} times as fast as generate at its best batch size, {results['best_batch_size']} (CPU seconds)")


def plans(run: Path, corpus: Corpus, read: int, n: int, snap: Neighbours) -> np.ndarray:
    """`n` snapped plans after the first sentences of the first document that has enough."""
    document = next(doc for doc in range(corpus.n_documents) if len(corpus.vectors(doc)) >= read)
    z_SD = torch.from_numpy(unit(corpus.vectors(document)[:read]))
    return rollout(LatentTransformer.from_pretrained(run), z_SD, n, on_step=lambda step, z_D, read_SD: snap(z_D, read_SD)).numpy()


def timed(work: Callable[[], list[list[int]]]) -> tuple[list[list[int]], float, float]:
    """What the work gives, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


@torch.inference_mode()
def in_parts(decoder: PrefixDecoder, z_BD: np.ndarray, sampling: Sampling, rows_at_once: int) -> list[list[int]]:
    """Ours, as the prefix decoder does it."""
    rows = []
    for start in range(0, len(z_BD), rows_at_once):
        prefix_BPH, bias = decoder.conditions(z_BD[start : start + rows_at_once])
        rows += generate_ids(decoder.lm, prefix_BPH, sampling, bias=bias)
    return rows


@torch.inference_mode()
def hugging_face(decoder: PrefixDecoder, z_BD: np.ndarray, sampling: Sampling, batch_size: int) -> list[list[int]]:
    """The same by `generate` with SDPA and its own cache; two hooks sum what was written and add the lift before the output layer."""
    lm, rows = decoder.lm, []
    end = lm.tokens.end_id
    for start in range(0, len(z_BD), batch_size):
        prefix_BPH, bias = decoder.conditions(z_BD[start : start + batch_size])
        lift = Lift(bias, len(prefix_BPH), lm.width)
        hooks = [
            lm.model.get_output_embeddings().register_forward_pre_hook(lift.add),
            lm.model.get_input_embeddings().register_forward_hook(lift.count),
        ]
        try:
            with lm.fused_attention():
                found_BT = lm.model.generate(
                    inputs_embeds=prefix_BPH, attention_mask=torch.ones(prefix_BPH.shape[:2], dtype=torch.int64), do_sample=False,
                    max_new_tokens=sampling.max_new_tokens, no_repeat_ngram_size=sampling.no_repeat_tokens or None,
                    pad_token_id=end, eos_token_id=end,
                )  # fmt: skip
        finally:
            for hook in hooks:
                hook.remove()
        rows += [ids[: ids.index(end)] if end in ids else ids for ids in found_BT.tolist()]
    return rows


class Lift:
    """The lexical lift inside `generate`."""

    def __init__(self, bias: Bias, n_rows: int, width: int) -> None:
        self.bias, self.rows_B, self.n_tokens, self.spoken_BH = bias, torch.arange(n_rows), 0, torch.zeros(n_rows, width)

    def count(self, module: Any, inputs: Any, output_BTH: Tensor) -> None:
        """A token has been embedded."""
        self.spoken_BH, self.n_tokens = self.spoken_BH + output_BTH[:, 0], self.n_tokens + 1

    def add(self, module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The lift on the hidden states that the output layer reads."""
        lift_BH = self.bias(self.spoken_BH, self.n_tokens, self.rows_B)
        return inputs if lift_BH is None else ((inputs[0].float() + lift_BH[:, None]).to(inputs[0].dtype),)


def first_difference(ours: list[int], theirs: list[int]) -> int:
    """Place of the first token that differs."""
    return next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


if __name__ == "__main__":
    main()
