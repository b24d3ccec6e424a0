"""Inversion without a residual code: text quality against encoder calls, for every decoder that has what it needs.

    lsm encode-corpus TRAIN... --out CORPUS [--encoder NAME] && lsm build-index --corpus CORPUS --out STORE --phrases
    python scripts/bench_inversion.py HELD_OUT.jsonl.gz... --index STORE [--encoder NAME] --out RESULTS.json

One sentence of 30 to 200 characters a document, the same number from every input. Each searching decoder runs once with the largest
budget; what it holds after every round gives the rows of the smaller ones (budgets within the first batch get a run of their own).
RESULTS.json is rewritten as sentences are done, so that a run that is cut short still says what it measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsm.bench import text_metrics
from lsm.bench.roundtrip import cosines, encode_written
from lsm.bench.sample import whole_sentences
from lsm.decode.correcting import CorrectorDecoder
from lsm.decode.inversion import InversionDecoder
from lsm.decode.load import DecoderSource
from lsm.decode.vectors import Encode, unit
from lsm.encode.encoder import load_encoder
from lsm.files import write_json
from lsm.progress import Progress
from lsm.provenance import report as stamped
from lsm.text.readers import iter_documents
from lsm.text.segment import segment

SHORTEST, LONGEST = 30, 200
AT_ONCE = 16
FIRST_BATCH = 16
"""Texts that a search tries before its first round: a smaller budget cannot be read off a larger one's."""
Trail = list[tuple[int, str]]
"""Encoder calls and best text after every round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="held-out documents, as lsm reads them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--independent", default="wordllama", help="encoder that took no part")
    parser.add_argument("--index", type=Path, help="phrase store of training text; FILE.phrases beside it is used too")
    parser.add_argument("--adapter", help="prefix adapter for the encoder; default: the shipped one, if there is one")
    parser.add_argument("--corrector", type=Path, help="folder of a corrector for the encoder")
    parser.add_argument(
        "--decoders",
        default="retrieval,prefix,inversion,guided",
        help="with a corrector also corrector, corrector+beam, inversion+corrector",
    )
    parser.add_argument("--calls", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument("--exclude", type=Path, help="JSON {file: {id: share}}: documents that overlap training text, left out")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--short", type=int, default=90, help="characters of the shorter sentences, which get a row of their own too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if "corrector" in options.decoders and options.corrector is None:
        parser.error("--decoders with a corrector need --corrector FOLDER")
    torch.set_num_threads(options.threads)

    encoder, independent = load_encoder(options.encoder, device="cpu"), load_encoder(options.independent, device="cpu")
    excluded = {name for ids in json.loads(options.exclude.read_text()).values() for name in ids} if options.exclude else set()
    texts = draw(options.inputs, options.n, options.seed, excluded)
    z_BD = unit(encoder.encode(texts).vectors)

    def source(name: str, calls: int) -> DecoderSource:
        return DecoderSource(
            encoder=encoder.fingerprint(), index=options.index, adapter=options.adapter,
            corrector=options.corrector if "corrector" in name else None,
            encode=lambda some: encoder.encode(some).vectors, encoder_calls=calls, beam=4 if name.endswith("+beam") else 1,
        )  # fmt: skip

    judge = Judge(texts, lambda some: encoder.encode(list(some)).vectors, lambda some: independent.encode(list(some)).vectors)
    results: dict[str, Any] = {"encoder": options.encoder, "texts": texts, "rows": [], "written": {}}
    begun = time.perf_counter()
    for name in options.decoders.split(","):
        largest = max(options.calls)
        small = [calls for calls in options.calls if calls < FIRST_BATCH and name.split("+")[0] in ("inversion", "guided", "corrector")]
        for calls in dict.fromkeys([*small, largest]):
            (decoder,) = source(name, calls).load([name.split("+")[0]])
            trails: list[Trail] = []
            seconds, rows = 0.0, len(results["rows"])
            with Progress(f"{name}, {calls} calls", len(texts), "sentences") as progress:
                for start in range(0, len(texts), AT_ONCE):
                    started = time.perf_counter()
                    found = decoder.decode(z_BD[start : start + AT_ONCE], seed=options.seed)
                    seconds += time.perf_counter() - started
                    search = isinstance(decoder, InversionDecoder | CorrectorDecoder)
                    used = round(decoder.encoder_calls_per_sentence)
                    trails += decoder.trails if search else [[(used, text)] for text in found]
                    limits = [calls] if not search or calls < largest else [n for n in options.calls if n not in small]
                    results["rows"][rows:] = [
                        {"decoder": name, "limit": n if used else 0, **judge.row(trails, n)}
                        | {"short": judge.row(trails, n, longest=options.short)}
                        | ({"seconds": seconds / len(trails)} if n == calls else {})  # smaller budgets had no run of their own
                        for n in limits
                    ]
                    for n in limits:
                        results["written"][f"{name} {n}"] = [within(trail, n)[1] for trail in trails]
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    write_json(options.out, stamped(results, seed=options.seed, device="cpu", elapsed_seconds=time.perf_counter() - begun))
                    progress.advance(len(found))
            for row in results["rows"][rows:]:
                print(
                    "  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()),
                    flush=True,
                )


def draw(inputs: Sequence[str], n: int, seed: int, excluded: set[str]) -> list[str]:
    """One sentence of each of n documents, the same number from every input."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for number, value in enumerate(inputs):
        documents = [document for document in iter_documents([value]) if document.doc_id not in excluded]
        wanted = n * (number + 1) // len(inputs) - len(texts)
        for place in rng.permutation(len(documents)):
            whole = [s.text for s in whole_sentences(segment(documents[place].text)[1]) if SHORTEST <= len(s.text) <= LONGEST]
            whole = [text for text in whole if text[0].isupper() and text[-1] in ".!?"]
            if whole and wanted:
                texts.append(whole[int(rng.integers(len(whole)))])
                wanted -= 1
    return texts


def within(trail: Trail, limit: int) -> tuple[int, str]:
    """The calls and the text of the last round within the limit."""
    return [entry for entry in trail if entry[0] <= limit][-1]


class Judge:
    """Scores what came back of the first so many texts."""

    def __init__(self, texts: list[str], own: Encode, independent: Encode) -> None:
        self.texts, self.encoders = texts, {"cosine": own, "cosine_independent": independent}
        self.z = {name: unit(encode(texts)) for name, encode in self.encoders.items()}

    def row(self, trails: Sequence[Trail], limit: int, *, longest: int = LONGEST) -> dict[str, Any]:
        """Means over the sentences of at most `longest` characters; BLEU and BLEU-1 (with brevity penalty) of them all together."""
        places = [n for n, text in enumerate(self.texts[: len(trails)]) if len(text) <= longest]
        if not places:
            return {"n": 0}
        entries = [within(trails[n], limit) for n in places]
        written, wanted = [text for _, text in entries], [self.texts[n] for n in places]
        scores = text_metrics.score_texts(written, wanted)
        counts_M = scores.bleu_counts_NM.sum(0)
        brevity = min(1.0, float(np.exp(1 - counts_M[-1] / max(1.0, counts_M[-2]))))
        row: dict[str, Any] = {
            "n": len(entries),
            "encoder_calls": float(np.mean([calls for calls, _ in entries])),
            "bleu": text_metrics.bleu_of(counts_M),
            "bleu_1": float(100 * brevity * counts_M[0] / max(1.0, counts_M[4])),
            "rouge_l": float(100 * np.mean([text_metrics.rouge_l(*pair) for pair in zip(written, wanted, strict=True)])),
            "token_f1": float(scores.token_f1_N.mean()),
            "chrf": float(scores.chrf_N.mean()),
            "exact": float(scores.exact_match_N.mean()),
            "length_ratio": float(counts_M[-2] / counts_M[-1]),
        }
        for name, encode in self.encoders.items():
            row[name] = float(cosines(encode_written(encode, written), self.z[name][places]).mean())
        return row


if __name__ == "__main__":
    main()
