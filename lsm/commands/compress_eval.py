"""`lsm compress eval`: answers from soft tokens beside those from the text, from parts of it, and from nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm.errors import UserError
from lsm.progress import Progress, say

if TYPE_CHECKING:
    from torch import Tensor

    from lsm.bench.compression import Answered, Way
    from lsm.commands.compress import Options
    from lsm.compress.encoder import Compressor
    from lsm.compress.prompts import Prompts
    from lsm.compress.settings import CompressSettings
    from lsm.lm.frozen import FrozenLM
    from lsm.text.questions import Question


_FIRST = ("full text", "no text", "learned", "truncated, same tokens", "shuffled")
"""Rows that are measured first: an evaluation that is stopped has them."""
_OF_A_TEXT = 5


@dataclass
class Loaded:
    """A trained compressor with all that it needs."""

    lm: FrozenLM
    compressor: Compressor
    settings: CompressSettings
    prompts: Prompts
    sha256: str

    def silent(self) -> AbstractContextManager[Any]:
        """While open the LM answers without the encoder's LoRA."""
        return self.compressor.silent(self.lm)

    @property
    def cue(self) -> int:
        return self.settings.encoder.cue


def load(run: Path, *, device: str) -> Loaded:
    """The compressor of a run beside its LM."""
    from lsm.compress.prompts import Prompts
    from lsm.compress.saved import adapter_sha256, find_settings, load_compressor
    from lsm.compress.source import load_lm, load_source

    folder, settings, config = find_settings(run)
    lm = load_lm(settings, device=device)
    source = load_source(settings.encoder, device=device)
    compressor = load_compressor(folder, settings, config, lm, source.pieces, source.width)
    return Loaded(lm, compressor, settings, Prompts(lm.tokens, settings.data.shots), adapter_sha256(folder))


def spread(questions: list[Question], n: int) -> list[Question]:
    """`n` questions, evenly over articles, in each over its texts, in each text over its questions (which come in their answers' order)."""
    by_article: dict[str, dict[str, list[Question]]] = {}
    for one in questions:
        by_article.setdefault(one.article, {}).setdefault(one.text, []).append(one)
    # Whole groups of evenly spaced texts: a text is read once for all its questions.
    chosen: list[Question] = []
    share = max(1, n // len(by_article))
    for texts in by_article.values():
        groups = [[own[(2 * k + 1) * len(own) // (2 * m)] for k in range(m)] for own in texts.values() for m in [min(_OF_A_TEXT, len(own))]]
        wanted = max(1, -(-share // max(1, round(sum(map(len, groups)) / len(groups)))))
        step = max(1, len(groups) // wanted)
        chosen += [one for group in groups[::step] for one in group][:share]
    return chosen[:n]


def evaluate(options: Options) -> dict[str, Any]:
    """Print the scoreboard of every ratio, what the wire costs, the diagnostics, and by name what has collapsed."""
    import torch

    from lsm.bench import compression
    from lsm.encode.encoder import load_encoder
    from lsm.report import tables

    questions, n_seen = _unseen_questions(options)
    loaded = load(Path(options.inputs[0]), device=options.device)
    torch.set_num_threads(loaded.settings.threads)
    longest = loaded.settings.data.max_context_tokens
    counts = dict(zip(texts := list({q.text for q in questions}), map(len, loaded.lm.tokens.encode(texts)), strict=True))
    short = [one for one in questions if counts[one.text] <= longest]
    if not short:
        raise UserError(f"{', '.join(options.inputs[1:])}: no question about a text of at most {longest} tokens; give others")
    n_long, questions = len(questions) - len(short), spread(short, options.questions)
    encoder = load_encoder(options.sentence_encoder, device=options.device)
    ratios = (options.ratio,) if options.ratio else loaded.settings.ratios
    ways = _shared_ways(loaded) + [
        way for ratio in ratios for way in ways_at(loaded, questions, ratio, options, lambda t: encoder.encode(t).vectors)
    ]
    say(f"{len(questions)} questions on {len({q.text for q in questions})} texts of {len({q.article for q in questions})} articles, "
        f"{len(ways)} rows; left out: {n_seen} that training has read, {n_long} on longer texts", quiet=options.quiet)  # fmt: skip
    ways.sort(key=lambda way: _FIRST.index(way.label) if way.label in _FIRST else len(_FIRST))
    answered: dict[tuple[str, int | None], Answered] = {}
    with Progress("compress eval", len(ways), "rows", quiet=options.quiet) as progress:
        for way in ways:
            same = answered.get((way.equals or "", None))  # a row that is another one by construction is not measured again
            answered[way.label, way.ratio] = same or _measured(loaded, way, questions, options)
            scores = answered[way.label, way.ratio].scores
            n = len(questions)
            say(f"{way.label} {way.ratio or ''}: F1 {sum(scores['f1']) / n:.3f}, nats {sum(scores['nll']) / n:.3f}", quiet=options.quiet)
            progress.advance(1, way.label)
    full, none = answered["full text", None], answered["no text", None]
    order = {None: 0} | {ratio: place for place, ratio in enumerate(ratios, start=1)}
    ways.sort(key=lambda way: order[way.ratio])
    repeat = {"resamples": options.resamples, "seed": options.seed}
    rows = [compression.scoreboard_row(way, answered[way.label, way.ratio], full, none, questions, **repeat) for way in ways]
    differences, findings = [], []
    for ratio in ratios:
        learned = answered["learned", ratio]
        for other in ("truncated, same tokens", "shuffled", "best sentences (sees the question)", "truncated, learned cue"):
            if (other, ratio) not in answered:  # one text alone has none to be shuffled with, a run without cue no text with it
                continue
            found = compression.difference(learned, answered[other, ratio], questions, **repeat)
            differences.append({"compared": f"learned − {other}", "ratio": ratio, **found})
        differences.append({"compared": "learned − no text", "ratio": ratio, **compression.difference(learned, none, questions, **repeat)})
        findings.append(_findings(loaded, questions, ratio, rows, differences))
    costs = [row for ratio in ratios for row in _costs(loaded, questions, ratio, options.group)]
    tables.show(rows, tables.COMPRESSION, title=f"{loaded.lm.name}: answers from compressed texts, 95 % intervals over articles")
    tables.show(differences, tables.COMPRESSION_DIFFERENCE, title="paired differences (positive: the first is better)")
    tables.show(costs, tables.COMPRESSION_BYTES, title="bytes a text on the wire (scales counted; the file's header is shared)")
    for found in findings:
        collapsed = "; ".join(found["collapsed"]) or "nothing has collapsed"
        print(f"{found['ratio']}x: {collapsed} (cosine within {found['cosine_within']:.3f}, between {found['cosine_between']:.3f}, "
              f"effective rank {found['effective_rank']:.0f}, size {found['norm_ratio']:.2f} of a word's)")  # fmt: skip
    results: dict[str, Any] = {
        "rows": rows,
        "differences": differences,
        "bytes": costs,
        "findings": findings,
        "lm": loaded.lm.fingerprint(),
        "n_seen_left_out": n_seen,
    }
    if options.beside:
        results["joint"] = _joint(options, loaded, questions, answered, ratios[0])
        tables.show(results["joint"], tables.COMPRESSION_JOINT, title=f"two LMs, {ratios[0]}x")
    return results


def _unseen_questions(options: Options) -> tuple[list[Question], int]:
    """What is asked of neither run's training, and how many questions are left out for it."""
    from lsm.compress.saved import unseen
    from lsm.text.questions import read_questions

    everything = read_questions(options.inputs[1:])
    if not everything:
        raise UserError(f"{', '.join(options.inputs[1:])}: no question with an answer; give others")
    kept = unseen(everything, Path(options.inputs[0]))
    if options.beside is not None:
        kept = unseen(kept, options.beside)
    if not kept:
        raise UserError(f"all {len(everything):,} questions are on texts or articles that were read in training; give others")
    return kept, len(everything) - len(kept)


def _measured(loaded: Loaded, way: Way, questions: list[Question], options: Options) -> Answered:
    """The answers of one way; with --out they are kept there, and found again by an evaluation that goes on."""
    from lsm import __version__
    from lsm.bench.compression import NEW_TOKENS, Answered, answer_all
    from lsm.config import to_dict
    from lsm.files import fingerprint, make_folder, read_json, write_json

    if options.out is None:
        return answer_all(loaded.lm, loaded.prompts, way, questions)
    asked = [[one.text, one.question, one.answers] for one in questions]
    reader = [__version__, NEW_TOKENS, loaded.sha256, to_dict(loaded.settings), loaded.lm.sha256, str(loaded.lm.dtype)]
    key = fingerprint([*reader, way.label, way.ratio, options.group, options.sentence_encoder, asked])
    make_folder(options.out)
    path = options.out / f"row-{key}.json"
    if not path.exists():
        answers = answer_all(loaded.lm, loaded.prompts, way, questions)
        write_json(path, {"label": way.label, "ratio": way.ratio, "texts": answers.texts, "scores": answers.scores})
    found = read_json(path)
    return Answered(found["texts"], found["scores"])


def _shared_ways(loaded: Loaded) -> list[Way]:
    """Rows that no ratio changes."""
    import torch

    from lsm.bench.compression import Way
    from lsm.bench.compression_controls import each, text_vectors, through_untrained

    lm = loaded.lm
    whole = each(lambda one: text_vectors(lm, one.text))
    ways = [
        Way("full text", whole),
        Way("replayed embeddings, raw", whole, anchor=""),
        Way('replayed embeddings, anchor "Answer: "', whole, anchor="Answer: "),
        Way("replayed embeddings, untrained adapter", each(lambda one: through_untrained(lm, one.text))),
        Way("no text", each(lambda one: torch.zeros(0, lm.width, device=lm.device))),
    ]
    if loaded.compressor.cue is not None:
        cue = loaded.compressor.cue
        ways.append(Way("full text, learned cue", each(lambda one: torch.cat([text_vectors(lm, one.text), cue])), uncounted=loaded.cue))
    return [replace(way, around=loaded.silent) for way in ways]


def ways_at(loaded: Loaded, questions: list[Question], ratio: int, options: Options, encode: Callable[[list[str]], Any]) -> list[Way]:
    """Rows at one ratio."""
    import torch

    from lsm.bench import compression_controls as controls
    from lsm.bench.compression import Way
    from lsm.codes import soft_file
    from lsm.text.questions import others

    lm, compressor = loaded.lm, loaded.compressor
    texts = list(dict.fromkeys(one.text for one in questions))
    with torch.no_grad():
        sent = {text: compressor.send([text], lm, ratio) for text in texts}
    n_soft = {text: len(codes[0]) + len(lm.tokens.encode(heads)[0]) for text, (codes, heads) in sent.items()}
    n_bytes = {t: soft_file.payload_bytes(len(c[0]), c[0].shape[1], 8, options.group, h[0]) for t, (c, h) in sent.items()}
    other = others(questions)

    def learned(pick: Callable[[str], str], bits: int | None = None) -> Callable[[list[Question]], Any]:
        def contexts(asked: list[Question]) -> Any:
            chosen = [pick(one.text) for one in asked]
            codes, heads = [sent[text][0][0] for text in chosen], [sent[text][1][0] for text in chosen]
            if bits:
                wire = soft_file.Wire(bits, options.group, ratio, "", "", [code.cpu().numpy() for code in codes], heads)
                back = soft_file.unpack(soft_file.pack(wire), origin="memory")
                codes = [torch.from_numpy(code).to(lm.device) for code in back.codes]
            soft = compressor.receive(codes, heads, lm)
            return soft.contexts, soft.placed(lm)

        return contexts

    def first_tokens(one: Question) -> Tensor:
        return controls.text_vectors(lm, one.text)[: n_soft[one.text]]

    ways = [
        Way("truncated, same tokens", controls.each(first_tokens)),
        Way(
            "truncated, same bytes (int8)",
            controls.each(lambda one: controls.first_bytes(lm, one.text, n_bytes[one.text])),
            equals="full text" if all(len(text.encode()) <= n_bytes[text] for text in texts) else None,
        ),
        Way(
            "best sentences (sees the question)",
            controls.each(lambda one: controls.best_sentences(lm, one, n_soft[one.text], encode)),
            per_question=True,
        ),
        Way("PCA, same vectors", controls.each(lambda one: controls.principal_components(lm, one.text, n_soft[one.text]))),
        *([Way("shuffled", learned(other.__getitem__), uncounted=loaded.cue)] if other else []),
        Way("learned", learned(str), uncounted=loaded.cue),
        *(Way(f"learned, int{bits}", learned(str, bits), uncounted=loaded.cue) for bits in options.wire_bits),
    ]
    if compressor.cue is not None:
        cue = compressor.cue
        ways.append(Way("truncated, learned cue", controls.each(lambda one: torch.cat([first_tokens(one), cue])), uncounted=loaded.cue))
    return [replace(way, ratio=ratio, around=loaded.silent) for way in ways]


def _findings(loaded: Loaded, questions: list[Question], ratio: int, rows: list[Any], differences: list[Any]) -> dict[str, Any]:
    import torch

    from lsm.bench.compression_findings import collapse, soft_token_findings

    texts = list(dict.fromkeys(one.text for one in questions))
    with torch.no_grad():
        soft = [loaded.compressor([text], loaded.lm, ratio).soft.tokens[0] for text in texts]
        queries = loaded.compressor.queries
        asked = None if queries is None else queries.at(len(soft[0]))
    found = soft_token_findings(soft, embedding_rms=loaded.lm.embedding_rms(), queries=asked)
    row = next(row for row in rows if row["label"] == "learned" and row["ratio"] == ratio)
    over_shuffled = next((one for one in differences if one["compared"] == "learned − shuffled" and one["ratio"] == ratio), None)
    return {"ratio": ratio, **found, "gap": row["gap"], "collapsed": collapse(found, row, over_shuffled)}


def _costs(loaded: Loaded, questions: list[Question], ratio: int, group: int) -> list[dict[str, Any]]:
    """Mean bytes a text at each number of bits, and what its soft tokens would have to take to beat zstd of the text."""
    import numpy as np
    import zstandard

    from lsm.codes.soft_file import BITS, payload_bytes

    texts = list(dict.fromkeys(one.text for one in questions))
    codes, heads = zip(*(loaded.compressor.send([text], loaded.lm, ratio) for text in texts), strict=True)
    width, n_codes = codes[0][0].shape[1], float(np.mean([len(code[0]) for code in codes]))
    utf8 = float(np.mean([len(text.encode()) for text in texts]))
    zstd = float(np.mean([len(zstandard.ZstdCompressor(level=19).compress(text.encode())) for text in texts]))
    rows = []
    for bits in BITS:
        sizes = [payload_bytes(len(code[0]), width, bits, group, head[0]) for code, head in zip(codes, heads, strict=True)]
        wire = float(np.mean(sizes))
        rows.append({
            "ratio": ratio, "bits": bits, "codes": n_codes, "width": width, "wire_bytes": wire, "utf8_bytes": utf8, "zstd_bytes": zstd,
            "over_zstd": wire / zstd, "bits_a_code_to_beat_zstd": 8 * zstd / n_codes,
            "bits_an_entry_to_beat_zstd": 8 * zstd / n_codes / width,
        })  # fmt: skip
    return rows


def _joint(options: Options, loaded: Loaded, questions: list[Question], answered: dict[Any, Answered], ratio: int) -> list[dict[str, Any]]:
    """Both LMs alone and together, each reading its own soft tokens."""
    import numpy as np

    from lsm.bench import intervals
    from lsm.bench.answers import answer_f1, exact_match
    from lsm.bench.compression import answer_all, article_draws
    from lsm.bench.joint import joint_answers

    assert options.beside is not None
    second = load(options.beside, device=options.device)
    learned = next(w for w in ways_at(second, questions, ratio, options, lambda texts: np.zeros((len(texts), 1))) if w.label == "learned")
    first = next(w for w in ways_at(loaded, questions, ratio, options, lambda texts: np.zeros((len(texts), 1))) if w.label == "learned")
    alone = [answered["learned", ratio].texts, answer_all(second.lm, second.prompts, learned, questions).texts]

    def scorer(one: Loaded, way: Way) -> Callable[[list[tuple[int, str]]], list[float]]:
        def score(pairs: list[tuple[int, str]]) -> list[float]:
            asked = [replace(questions[n], answers=(answer,)) for n, answer in pairs]
            return [-nll for nll in answer_all(one.lm, one.prompts, way, asked, write=False).scores["nll"]]

        return score

    together = joint_answers(list(zip(*alone, strict=True)), [scorer(loaded, first), scorer(second, learned)])
    article_N, drawn_RG = article_draws(questions, options.resamples, options.seed)
    rows = []
    for label, texts in zip((loaded.lm.name, second.lm.name, "both, rescored by both"), (*alone, together), strict=True):
        scores = {"f1": answer_f1, "em": exact_match}
        found = {k: np.array([f(text, one.answers) for text, one in zip(texts, questions, strict=True)]) for k, f in scores.items()}
        rows.append({"label": label, **intervals.as_row({k: intervals.mean(v, article_N, drawn_RG) for k, v in found.items()})})
    return rows
