"""`lsm compress eval`: answers from soft tokens beside those from the text, from parts of it, and from nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm.commands.compress_rows import load, send, shared_ways, spread, ways_at
from lsm.errors import UserError
from lsm.progress import Progress, say

if TYPE_CHECKING:
    from lsm.bench.compression import Answered, Way
    from lsm.commands.compress import Options
    from lsm.commands.compress_rows import Loaded, Sent
    from lsm.text.questions import Question


_ROWS = 1
"""Counts changes of what rows mean: kept ones of before are not read again."""
_FIRST = ("full text", "no text", "learned", "truncated, same tokens", "shuffled")
"""Rows that are measured first: an evaluation that is stopped has them."""


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
    sent, ways = {ratio: send(loaded, questions, ratio) for ratio in ratios}, shared_ways(loaded)
    for ratio in ratios:
        asked = {"sentence_encoder": encoder, "wire_bits": options.wire_bits, "group": options.group}
        ways += ways_at(loaded, questions, ratio, sent[ratio], **asked)
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
        findings.append(_findings(loaded, sent[ratio], ratio, rows, differences))
    costs = [row for ratio in ratios for row in _costs(sent[ratio], ratio, options.group)]
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
        first = next(way for way in ways if (way.label, way.ratio) == ("learned", ratios[0]))
        results["joint"] = _joint(options, loaded, first, answered["learned", ratios[0]], questions)
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
    """The answers of one way; with --out they are kept there, and found again by an evaluation that goes on, or by another compressor's for
    the same LM and questions where training has no part in them."""
    from lsm import __version__
    from lsm.bench.compression import NEW_TOKENS, Answered, answer_all
    from lsm.files import fingerprint, make_folder, read_json, write_json

    if options.out is None:
        return answer_all(loaded.lm, loaded.prompts, way, questions)
    asked = [[one.article, one.text, one.question, one.answers] for one in questions]
    lm = loaded.lm
    reader = [__version__, _ROWS, NEW_TOKENS, lm.sha256, str(lm.dtype), lm.device.type, loaded.settings.data.shots]
    key = fingerprint([*reader, way.label, way.ratio, way.made_from, asked])
    make_folder(options.out)
    path = options.out / f"row-{key}.json"
    if not path.exists():
        answers = answer_all(loaded.lm, loaded.prompts, way, questions)
        write_json(path, {"label": way.label, "ratio": way.ratio, "texts": answers.texts, "scores": answers.scores})
    found = read_json(path)
    return Answered(found["texts"], found["scores"])


def _findings(loaded: Loaded, sent: Sent, ratio: int, rows: list[Any], differences: list[Any]) -> dict[str, Any]:
    import torch

    from lsm.bench.compression_findings import collapse, soft_token_findings

    codes, heads = zip(*sent.values(), strict=True)
    with torch.no_grad():
        soft = loaded.compressor.receive(codes, heads, loaded.lm).tokens
        queries = loaded.compressor.queries
        asked = None if queries is None else queries.at(len(soft[0]))
    found = soft_token_findings(soft, embedding_rms=loaded.lm.embedding_rms(), queries=asked)
    row = next(row for row in rows if row["label"] == "learned" and row["ratio"] == ratio)
    over_shuffled = next((one for one in differences if one["compared"] == "learned − shuffled" and one["ratio"] == ratio), None)
    return {"ratio": ratio, **found, "gap": row["gap"], "collapsed": collapse(found, row, over_shuffled)}


def _costs(sent: Sent, ratio: int, group: int) -> list[dict[str, Any]]:
    """Mean bytes a text at each number of bits, and what its soft tokens would have to take to beat zstd of the text."""
    import numpy as np
    import zstandard

    from lsm.codes.soft_file import BITS, payload_bytes

    codes, heads = zip(*sent.values(), strict=True)
    width, n_codes = codes[0].shape[1], float(np.mean([len(code) for code in codes]))
    utf8 = float(np.mean([len(text.encode()) for text in sent]))
    zstd = float(np.mean([len(zstandard.ZstdCompressor(level=19).compress(text.encode())) for text in sent]))
    rows = []
    for bits in BITS:
        sizes = [payload_bytes(len(code), width, bits, group, head) for code, head in zip(codes, heads, strict=True)]
        wire = float(np.mean(sizes))
        rows.append({
            "ratio": ratio, "bits": bits, "codes": n_codes, "width": width, "wire_bytes": wire, "utf8_bytes": utf8, "zstd_bytes": zstd,
            "over_zstd": wire / zstd, "bits_a_code_to_beat_zstd": 8 * zstd / n_codes,
            "bits_an_entry_to_beat_zstd": 8 * zstd / n_codes / width,
        })  # fmt: skip
    return rows


def _joint(options: Options, loaded: Loaded, first: Way, answered: Answered, questions: list[Question]) -> list[dict[str, Any]]:
    """Both LMs alone and together, each reading its own soft tokens."""
    import numpy as np

    from lsm.bench import intervals
    from lsm.bench.answers import answer_f1, exact_match
    from lsm.bench.compression import answer_all, article_draws
    from lsm.bench.joint import joint_answers

    assert options.beside is not None
    second, ratio = load(options.beside, device=options.device), first.ratio or 1
    ways = ways_at(second, questions, ratio, send(second, questions, ratio), group=options.group)
    learned = next(way for way in ways if way.label == "learned")
    alone = [answered.texts, _measured(second, learned, questions, options).texts]

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
