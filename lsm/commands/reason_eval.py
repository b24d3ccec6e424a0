"""`lsm reason eval`: what a stack writes for inputs it has not seen, in one table with its controls.

Shape letters: N rows, D idea width, G documents, R resamples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm.errors import UserError
from lsm.progress import Progress, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lsm.commands.reason import Options
    from lsm.reason.stack import Stack
    from lsm.text.pairs import Pair


@dataclass(frozen=True)
class _Written:
    """One line of the table before it is scored."""

    label: str
    texts: list[str]
    nats: tuple[np.ndarray, np.ndarray] | None
    """Of each first reference, and its tokens; None where nothing was read by the LM."""
    n_bytes: float | None = None
    """Mean bytes of what was written from."""


def evaluate(options: Options) -> dict[str, Any]:
    """Write, score, print and return the rows."""
    from lsm.bench import intervals, summaries
    from lsm.commands.reason import load_stack, pair_fields
    from lsm.reason.model import ReasonModel
    from lsm.reason.space import collapse, mean_pairwise_cosine
    from lsm.report.tables import SUMMARIES, SUMMARY_DIFFERENCE, show
    from lsm.text.pairs import read_pairs

    folder = Path(options.arguments[0])
    if options.beside is not None and (kind := ReasonModel.from_pretrained(options.beside).settings.middle.kind) != "identity":
        raise UserError(f"--beside {options.beside}: its middle is {kind}; name a run that was trained with --stack.middle.kind identity")
    stack = load_stack(options, folder)
    pairs = read_pairs(options.arguments[1:], pair_fields(stack))
    pairs, n_seen = _unseen(pairs, folder)
    pairs = pairs[: options.limit]
    if not pairs:
        raise UserError(f"all {n_seen:,} inputs were read in training; give others")
    texts = [pair.text for pair in pairs]
    n_cut = int((stack.encoder.count_tokens(texts) > stack.model.max_input_tokens).sum())
    say(
        f"{len(pairs):,} inputs; {n_seen:,} more were left out because training has read them; {n_cut:,} are cut at "
        f"{stack.model.max_input_tokens} tokens of the encoder",
        quiet=options.quiet,
    )
    n_lines = 5 + (options.beside is not None) + (options.full_text > 0)
    with Progress("evaluation", n_lines, "lines", quiet=options.quiet) as progress:
        ideas_ND = stack.ideas(texts)
        lines = _own_lines(stack, pairs, ideas_ND, progress)
        lines += [_no_prefix(stack, pairs), _lead(stack, pairs)]
        progress.advance(2)
        if options.full_text:
            lines.append(_full_text(stack, pairs[: options.full_text]))
            progress.advance(1)
        if options.beside is not None:
            other = load_stack(options, options.beside)
            their_ideas_ND = other.ideas(texts)
            lines.append(_line("identity middle", other, their_ideas_ND, pairs))
            progress.advance(1)
    _, document_N = np.unique([pair.document for pair in pairs], return_inverse=True)
    drawn_RG = intervals.draw(int(document_N.max()) + 1, options.resamples, options.seed)
    rows, scores = [], {}
    for line in lines:
        n = len(line.texts)
        own_N, own_RG = document_N[:n], drawn_RG
        if n < len(pairs):
            _, own_N = np.unique(document_N[:n], return_inverse=True)
            own_RG = intervals.draw(int(own_N.max()) + 1, options.resamples, options.seed)
        found = summaries.score_summaries(line.texts, [pair.targets for pair in pairs[:n]])
        scores[line.label] = found
        rows.append(summaries.summary_row(line.label, line.texts, found, own_N, own_RG, nats=line.nats, n_bytes=line.n_bytes))
    differences = [
        summaries.difference(f"learned − {label}", scores["learned"], theirs, document_N, drawn_RG)
        for label, theirs in scores.items()
        if label != "learned" and len(theirs.bleu_counts_NM) == len(pairs)
    ]
    thoughts_ND = stack.think(ideas_ND)
    cosine = mean_pairwise_cosine(ideas_ND)
    collapsed = collapse(cosine, rows[0]["unique"], len(pairs))
    results = {
        "rows": rows, "differences": differences, "n": len(pairs), "n_seen_left_out": n_seen, "n_inputs_cut": n_cut,
        "pairwise_cosine_ideas": cosine, "pairwise_cosine_thoughts": mean_pairwise_cosine(thoughts_ND),
        "cosine_idea_thought": float((ideas_ND * thoughts_ND).sum(1).mean()), "collapsed": collapsed,
        "input_bytes": summaries.mean_bytes(texts), "metrics": summaries.signatures(), "middle": stack.model.settings.middle.kind,
    }  # fmt: skip
    show(rows, SUMMARIES, title=f"{len(pairs):,} inputs; ROUGE, BLEU and METEOR in per cent, 95 % intervals from resampling documents")
    show(differences, SUMMARY_DIFFERENCE, title="Paired differences in points; above 0: the stack is better")
    idea_bytes = 2 * stack.model.settings.latent_dim
    print(
        f"idea vectors: {idea_bytes} bytes at float16 (an input has {results['input_bytes']:,.0f} bytes of UTF-8), "
        f"mean pairwise cosine {cosine:.3f}"
    )
    print(f"COLLAPSE: {collapsed}" if collapsed else f"no collapse: {rows[0]['unique']:,} different texts of {len(pairs):,}")
    if options.out is not None:
        _write_out(options.out, results, lines, pairs)
    return results


def _own_lines(stack: Stack, pairs: Sequence[Pair], ideas_ND: np.ndarray, progress: Progress) -> list[_Written]:
    """With the right idea, another input's, and none. Greedy writing reads nothing but its idea: another's text is what another wrote."""
    own = _line("learned", stack, ideas_ND, pairs)
    progress.advance(1)
    shift = max(1, len(pairs) // 2)
    targets = [pair.targets[0] for pair in pairs]
    shuffled = _Written(
        "shuffled vector", own.texts[shift:] + own.texts[:shift], stack.nats(np.roll(ideas_ND, -shift, 0), targets), own.n_bytes
    )
    progress.advance(1)
    zeros_1D = np.zeros_like(ideas_ND[:1])
    zero = _Written("zero vector", stack.write(zeros_1D) * len(pairs), stack.nats(np.zeros_like(ideas_ND), targets))
    progress.advance(1)
    return [own, shuffled, zero]


def _line(label: str, stack: Stack, ideas_ND: np.ndarray, pairs: Sequence[Pair]) -> _Written:
    n_bytes = 2.0 * ideas_ND.shape[1]
    return _Written(label, stack.write(ideas_ND), stack.nats(ideas_ND, [pair.targets[0] for pair in pairs]), n_bytes)


def _no_prefix(stack: Stack, pairs: Sequence[Pair]) -> _Written:
    text, _ = stack.read("", None)
    nats = [stack.read("", pair.targets[0], write=False)[1] for pair in pairs]
    return _Written("LM, no prefix", [text] * len(pairs), _joined(nats))


def _lead(stack: Stack, pairs: Sequence[Pair]) -> _Written:
    from lsm.bench.summaries import mean_bytes
    from lsm.reason.lead import lead

    how = stack.model.notes["lead"]
    texts = [lead(pair.text, **how) for pair in pairs]
    return _Written(f"first {how['k']} {how['unit']}", texts, None, mean_bytes(texts))


def _full_text(stack: Stack, pairs: Sequence[Pair]) -> _Written:
    from lsm.bench.summaries import mean_bytes

    found = [stack.read(pair.text, pair.targets[0]) for pair in pairs]
    return _Written(
        "LM reads the text", [text for text, _ in found], _joined([nats for _, nats in found]), mean_bytes([p.text for p in pairs])
    )


def _joined(nats: Sequence[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([value for value, _ in nats]), np.array([count for _, count in nats])


def _unseen(pairs: list[Pair], folder: Path) -> tuple[list[Pair], int]:
    """The pairs whose inputs the training has not read, and how many it has."""
    from lsm.files import fingerprint, read_json
    from lsm.reason.training import SEEN

    file = folder / SEEN if (folder / SEEN).exists() else folder / "final" / SEEN
    seen = frozenset(read_json(file))
    kept = [pair for pair in pairs if fingerprint(pair.text) not in seen]
    return kept, len(pairs) - len(kept)


def _write_out(out: Path, results: dict[str, Any], lines: Sequence[_Written], pairs: Sequence[Pair]) -> None:
    from lsm.files import atomic_write, make_folder
    from lsm.report.tables import SUMMARIES, SUMMARY_DIFFERENCE, markdown

    make_folder(out)
    with atomic_write(out / "table.md", "w") as handle:
        handle.write(markdown(results["rows"], SUMMARIES) + "\n\n" + markdown(results["differences"], SUMMARY_DIFFERENCE) + "\n")
    with atomic_write(out / "texts.jsonl", "w") as handle:
        for number, pair in enumerate(pairs):
            wrote = {line.label: line.texts[number] for line in lines if number < len(line.texts)}
            handle.write(json.dumps({"document": pair.document, "references": pair.targets} | wrote, ensure_ascii=False) + "\n")
