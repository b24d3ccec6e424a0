"""Long continuations of held-out documents: by plan-then-write, by retrieval, by the LM alone, and as the documents really go on.

    python scripts/bench_long_documents.py RUN HELD_OUT.jsonl.gz --index STORE --out FOLDER [--judge LM]

The first `--documents` documents that have `--read` + `--sentences` sentences, none selected. Systems (`--systems`):

    real                the document itself: the ceiling
    plan[+SNAP][+drawn][+re-encode][+context]
                        plan-then-write; SNAP is neighbours, denoiser or words (see `lsm generate --snap-to`); with re-encode each
                        sentence is encoded and read before the next is planned; with drawn the words are drawn at temperature 0.7, else
                        the most probable ones are taken; with context the LM also reads the text so far,
                        eight sentences at a time; no sentence is said twice (`RepetitionRules`), so that `said before` is 0 by rule;
                        a run with a sampling head draws its plans
    retrieval           the nearest stored sentence of each plan
    lm-greedy, lm-sampled
                        the adapter's LM alone reads the text so far, as far as its window goes: `generate` with Hugging Face's
                        defaults, the most probable token or draws (temperature 1, top-k 50); its end token is barred

FOLDER gets one JSON file for each document and system (a second run goes on where the first stopped), results.json, report.md with the
tables and texts.md with everything that was written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lsm.bench import long_documents
from lsm.bench.long_documents import Written
from lsm.decode.decoders import WARM, Decoder, RetrievalDecoder
from lsm.decode.in_context import ContextDecoder
from lsm.decode.load import DecoderSource
from lsm.decode.vectors import Encode, unit
from lsm.encode.encoder import encoder_info, load_encoder
from lsm.errors import UserError
from lsm.files import atomic_write, fingerprint, read_json, sha256_file, write_json
from lsm.latent.heads import VectorSampling
from lsm.latent.saved import WEIGHTS, locate
from lsm.latent.transformer import LatentTransformer
from lsm.lm.frozen import FrozenLM
from lsm.progress import Progress, say
from lsm.provenance import report as stamped
from lsm.report import tables
from lsm.report.tables import Column
from lsm.text.readers import iter_documents
from lsm.text.segment import segment
from lsm.training.loop import step_seed
from lsm.write.continuation import continue_document
from lsm.write.snap import SnapName, make_snap

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_SYSTEMS = (
    "real,retrieval,plan,plan+denoiser,plan+words,plan+neighbours,plan+neighbours+drawn,plan+neighbours+drawn+re-encode,"
    "lm-greedy,lm-sampled"
)
SNAPS: tuple[SnapName, ...] = ("neighbours", "denoiser", "words")
BLOCK = 8
"""Plans worded in one batch by a decoder that reads the text so far."""
TOKENS_AT_ONCE = 64
"""Tokens that the LM alone writes between two looks at how many sentences it has."""
COLUMNS = (
    Column("system", "system", "text"),
    Column("n_documents", "documents", "count"),
    Column("n_sentences", "sentences", "count"),
    Column("repeated_4grams", "repeated 4-grams", "share"),
    Column("said_before", "said before", "share"),
    Column("distinct_1", "distinct-1", "share"),
    Column("distinct_2", "distinct-2", "share"),
    Column("distinct_3", "distinct-3", "share"),
    Column("words_per_sentence", "words a sentence"),
    Column("plan_cosine", "cosine to plan", "share"),
    Column("nats_per_token", "nats a token"),
    Column("seconds", "CPU seconds a document", "count"),
)
DRIFT = (Column("system", "system", "text"), *tables.DRIFT[1:])


class Bench:
    """Everything that the systems share, loaded once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.out)
        self.model = LatentTransformer.from_pretrained(options.run)
        if self.model.config.parts:
            raise UserError(f"{options.run} plans learned codes too; this bench takes runs of semantic vectors")
        name = options.encoder or self.model.config.encoder["name"]
        self.encoder, fits = load_encoder(name, device="cpu"), encoder_info(name, device="cpu").fits
        self.source = DecoderSource(
            encoder=self.encoder.fingerprint(), index=options.index, adapter=options.adapter, encode=self.encode, quiet=True
        )
        self.prefix = self.source.prefix()
        self.cut: Callable[[str], list[str]] = lambda text: [sentence.text for sentence in segment(text, fits=fits)[1]]
        self.ids: list[str] = []
        self.documents: list[list[str]] = []
        wanted = options.read + options.sentences
        for document in iter_documents(options.inputs):
            sentences = self.cut(document.text)
            if len(sentences) >= wanted and len(self.ids) < options.documents:
                self.ids.append(document.doc_id)
                self.documents.append(sentences)
        if not self.documents:
            raise UserError(f"no document has {wanted} sentences; lower --read or --sentences")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.encoder.encode(list(texts)).vectors

    def read(self, document: int) -> list[str]:
        return self.documents[document][: self.options.read]

    def write(self, system: str) -> None:
        """Write what is missing of a system's continuations."""
        missing = [number for number in range(len(self.documents)) if not self.path(system, number).exists()]
        if not missing:
            return
        if system.startswith("lm-"):
            missing = list(range(len(self.documents)))  # one batch, whose draws depend on all of it
            texts, seconds = self.alone(missing, sampled=system == "lm-sampled")
            for number, some in zip(missing, texts, strict=True):
                self.store(system, number, some, None, seconds / len(missing))
            return
        with Progress(system, len(missing), "documents") as progress:
            for number in missing:
                started = time.process_time()
                if system == "real":
                    texts, plans = self.documents[number][self.options.read :][: self.options.sentences], None
                else:
                    texts, plans = self.planned(system, number)
                self.store(system, number, texts, plans, time.process_time() - started)
                progress.advance(1)

    def planned(self, system: str, number: int) -> tuple[list[str], np.ndarray]:
        """A document continued by plans, and the plan of each sentence."""
        kinds = set(system.split("+")[1:])
        prefix = self.prefix.drawing(WARM) if "drawn" in kinds else self.prefix
        decoder: Decoder = RetrievalDecoder(self.source.store()) if system == "retrieval" else prefix
        if "context" in kinds:
            decoder = ContextDecoder(prefix)
        snap = make_snap(
            next((name for name in SNAPS if name in kinds), "none"), model=self.model, decoder=decoder, encode=self.encode,
            store=self.source.store, k=self.options.snap, seed=self.options.seed,
        )  # fmt: skip
        read = self.read(number)
        drawn = VectorSampling(seed=step_seed(self.options.seed, number)) if self.model.sampler is not None else None
        found = continue_document(
            self.model, self.encode(read), decoder, self.options.sentences, read=read, snap=snap, seed=self.options.seed,
            sampling=drawn, block=BLOCK if "context" in kinds else None,
            encode=self.encode if "re-encode" in kinds else None,
        )  # fmt: skip
        assert found.planned_ND is not None
        return found.texts, found.planned_ND[found.plan_of_text]

    def alone(self, numbers: list[int], *, sampled: bool) -> tuple[list[list[str]], float]:
        """The documents continued by the LM alone, in one batch, until each has its sentences; CPU seconds."""
        from transformers import StoppingCriteriaList

        lm, wanted = self.prefix.lm, self.options.sentences
        started = time.process_time()
        torch.manual_seed(self.options.seed)
        prompts = lm.tokens.encode([" ".join(self.read(number)) for number in numbers])
        window = getattr(lm.model.config.get_text_config(), "max_position_embeddings", 2048)
        room = min(self.options.lm_tokens or 60 * wanted, window - 1)
        prompts = [ids[-(window - room) :] for ids in prompts]
        longest = max(map(len, prompts))
        ids_BT = torch.tensor([[lm.tokens.end_id] * (longest - len(ids)) + ids for ids in prompts])
        mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        done: dict[int, list[str]] = {}

        def enough(so_far_BT: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if (so_far_BT.shape[1] - longest) % TOKENS_AT_ONCE == 0:
                for row, ids in enumerate(so_far_BT.tolist()):
                    sentences = self.cut(lm.tokens.decode(ids[longest:]))
                    if row not in done and len(sentences) > wanted:  # the last may be half a sentence
                        done[row] = sentences[:wanted]
                say(f"  {so_far_BT.shape[1] - longest} tokens, {len(done)} of {len(numbers)} documents have their sentences")
            return torch.tensor([row in done for row in range(len(so_far_BT))])

        before = lm.model.config._attn_implementation
        lm.model.set_attn_implementation("sdpa")
        with torch.inference_mode():
            found_BT = lm.model.generate(
                ids_BT, attention_mask=mask_BT, do_sample=sampled, max_new_tokens=room, suppress_tokens=[lm.tokens.end_id],
                pad_token_id=lm.tokens.end_id, stopping_criteria=StoppingCriteriaList([enough]), **({"top_k": 50} if sampled else {}),
            )  # fmt: skip
        lm.model.set_attn_implementation(before)
        for row, ids in enumerate(found_BT.tolist()):
            done.setdefault(row, self.cut(lm.tokens.decode(ids[longest:]))[:wanted])
        return [done[row] for row in range(len(numbers))], time.process_time() - started

    def path(self, system: str, number: int) -> Path:
        return self.folder / "written" / system / f"{number:03d}.json"

    def store(self, system: str, number: int, texts: list[str], plans: np.ndarray | None, seconds: float) -> None:
        path = self.path(system, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        planned = None if plans is None else unit(plans).round(5).tolist()
        write_json(path, {"doc_id": self.ids[number], "texts": texts, "planned": planned, "cpu_seconds": round(seconds, 2)})

    def found(self, system: str) -> Iterator[dict[str, Any]]:
        return (read_json(self.path(system, number)) for number in range(len(self.documents)))


def require_known(systems: Sequence[str]) -> None:
    """Raise `UserError` for a system that is none."""
    for system in systems:
        first, *kinds = system.split("+")
        known = first == "plan" or (not kinds and first in ("real", "retrieval", "lm-greedy", "lm-sampled"))
        if not known or set(kinds) - {*SNAPS, "drawn", "re-encode", "context"} or len(set(kinds) & set(SNAPS)) > 1:
            raise UserError(
                f"--systems {system}: no such system; there are real, retrieval, lm-greedy, lm-sampled and plan, after which may come "
                "one of neighbours, denoiser, words, then drawn, re-encode, context"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run of lsm pretrain that plans")
    parser.add_argument("inputs", nargs="+", help="held-out documents, as lsm reads them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--index", type=Path, required=True, help="phrase store of training text")
    parser.add_argument("--systems", default=DEFAULT_SYSTEMS)
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--read", type=int, default=20)
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--snap", type=int, default=16)
    parser.add_argument("--judge", help="LM that judges likelihood and takes no other part; default: none judges")
    parser.add_argument("--lm-tokens", type=int, help="most tokens that the LM alone writes a document; default 60 a sentence")
    parser.add_argument("--encoder")
    parser.add_argument("--adapter")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begun = time.perf_counter()
    require_known(options.systems.split(","))
    bench = Bench(options)
    claim(options, bench)
    judge = FrozenLM.load(options.judge) if options.judge else None
    own = judge is not None and judge.sha256 == bench.prefix.lm.sha256
    if own:
        say("--judge is the LM that writes: its likelihood says nothing about plan-then-write or about itself")
    read_GSD = np.stack([unit(bench.encode(bench.read(number))) for number in range(len(bench.documents))])
    whole = [unit(bench.encode(sentences)) for sentences in bench.documents]
    real = [z_SD[options.read :][: options.sentences] for z_SD in whole]
    rows: list[dict[str, Any]] = []
    drifts: list[dict[str, Any]] = []
    for system in options.systems.split(","):
        bench.write(system)
        found = list(bench.found(system))
        written = [judged(bench.read(number), one, bench.encode, judge) for number, one in enumerate(found)]
        rows.append(
            {"system": system}
            | long_documents.measure(written, resamples=options.resamples, seed=options.seed)
            | {"seconds": float(np.mean([one["cpu_seconds"] for one in found]))}
        )
        drifts += [
            {**row, "system": system}
            for row in long_documents.drift_rows(
                written, real, read_GSD, np.concatenate(whole), is_real=system == "real", resamples=options.resamples, seed=options.seed
            )
        ]
        results = {
            "rows": rows,
            "drift": drifts,
            "documents": bench.ids,
            "read": options.read,
            "judge": judge and {**judge.fingerprint(), "is_the_writing_lm": own},
        }
        write_json(
            options.out / "results.json", stamped(results, seed=options.seed, device="cpu", elapsed_seconds=time.perf_counter() - begun)
        )
        write_markdown(bench, options.systems.split(",")[: len(rows)], results)
        tables.show(rows[-1:], COLUMNS, title=system)


def claim(options: argparse.Namespace, bench: Bench) -> None:
    """Refuse a folder that holds texts of other settings."""
    settings = {name: getattr(options, name) for name in ("read", "sentences", "snap", "seed")} | {"documents": bench.ids}
    settings |= {
        "run": sha256_file(locate(options.run) / WEIGHTS),
        "index": sha256_file(options.index),
        "adapter": bench.prefix.adapter.sha256(),
    }
    settings |= {"encoder": bench.encoder.fingerprint(), "lm_tokens": options.lm_tokens}
    path, mine = options.out / "settings.json", fingerprint(settings)
    options.out.mkdir(parents=True, exist_ok=True)
    if path.exists() and (theirs := read_json(path)["fingerprint"]) != mine:
        raise UserError(f"{options.out} holds texts of other settings [{theirs}], not of these [{mine}]; give another --out")
    write_json(path, {"fingerprint": mine, "settings": settings})


def judged(read: list[str], one: dict[str, Any], encode: Encode, judge: FrozenLM | None) -> Written:
    """What is measured of one continuation."""
    nats, n_tokens = long_documents.surprise(judge, read, one["texts"]) if judge and one["texts"] else (None, 0)
    planned = None if one["planned"] is None else np.asarray(one["planned"], dtype=np.float32)
    z_ND = unit(encode(one["texts"])) if one["texts"] else np.zeros((0, 0), dtype=np.float32)
    return Written(read=read, texts=one["texts"], z_ND=z_ND, planned_ND=planned, nats=nats, n_tokens=n_tokens)


def write_markdown(bench: Bench, systems: Sequence[str], results: dict[str, Any]) -> None:
    """report.md and texts.md."""
    columns = [column for column in COLUMNS if any(row.get(column.key) is not None for row in results["rows"])]
    note = f"Likelihood under {results['judge']['name']}." if results["judge"] else "No LM judged."
    if results["judge"] and results["judge"]["is_the_writing_lm"]:
        note += " It is the LM that writes: its own likelihood is no judgement."
    note += (
        " Plans and retrieval never say a sentence twice, by rule, and the adapter repeats no three tokens; the LM alone has no such rule."
    )
    parts = ["# Long documents", note, tables.markdown(results["rows"], columns), tables.markdown(results["drift"], DRIFT)]
    with atomic_write(bench.folder / "report.md", "w") as handle:
        handle.write("\n\n".join(parts) + "\n")
    with atomic_write(bench.folder / "texts.md", "w") as handle:
        for number, name in enumerate(bench.ids):
            handle.write(f"# {name}\n\n{' '.join(bench.read(number))}\n\n")
            for system in systems:
                handle.write(f"## {system}\n\n{' '.join(read_json(bench.path(system, number))['texts'])}\n\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"bench_long_documents: {error}") from error
