"""`lsm reason eval`: what a stack writes for inputs it has not seen, in one table with its controls.

Shape letters: N rows, D idea width, G documents, R resamples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lsm.bench import intervals, summaries
from lsm.bench.idea_space import collapse, pairwise_cosine
from lsm.bench.summaries import mean_bytes
from lsm.errors import UserError
from lsm.files import atomic_write, fingerprint, make_folder
from lsm.progress import Progress, say
from lsm.reason.model import ReasonModel
from lsm.reason.stack import ideas_beside
from lsm.report.tables import SUMMARIES, SUMMARY_DIFFERENCE, markdown, show
from lsm.text.lead import lead
from lsm.text.pairs import read_pairs
from lsm.training.seen import load_seen

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
    from lsm.commands.reason import load_stack, pair_fields

    folder = Path(options.arguments[0])
    if options.beside is not None:
        _check_beside(ReasonModel.from_pretrained(folder), ReasonModel.from_pretrained(options.beside), options.beside)
    stack = load_stack(options, folder)
    pairs = read_pairs(options.arguments[1:], pair_fields(stack))
    pairs, n_seen, trained = _unseen(pairs, folder)
    pairs = pairs[: options.limit]
    if len(pairs) < 2:
        raise UserError(f"{len(pairs)} inputs, and {n_seen:,} more that training has read; give at least two others")
    n_trained = sum(fingerprint(pair.document) in trained for pair in pairs)
    texts = [pair.text for pair in pairs]
    n_cut = int((stack.encoder.count_tokens(texts) > stack.model.max_input_tokens).sum())
    say(
        f"{len(pairs):,} inputs; {n_seen:,} more were left out because training has read them; {n_cut:,} are cut at "
        f"{stack.model.max_input_tokens} tokens of the encoder"
        + (f"; {n_trained:,} are of documents with a name that training knows: leave them out if these are the same" * (n_trained > 0)),
        quiet=options.quiet,
    )
    with Progress("evaluation", 5 + (options.beside is not None) + (options.full_text > 0), "lines", quiet=options.quiet) as progress:
        other = load_stack(options, options.beside) if options.beside is not None else None
        ideas_ND, *their_ideas = ideas_beside([one for one in (stack, other) if one is not None], texts)
        writer = _Writer(pairs, options.nats or len(pairs), progress)
        lines = [*writer.own_lines(stack, ideas_ND), writer.no_prefix(stack), writer.lead(stack)]
        if options.full_text:
            lines.append(writer.full_text(stack, options.full_text))
        if other is not None:
            lines.append(writer.line("identity middle", other, their_ideas[0]))
    rows, differences = _scored(options, lines, pairs)
    thoughts_ND = stack.think(ideas_ND)
    cosine = pairwise_cosine(ideas_ND)
    collapsed = collapse(cosine, rows[0]["unique"], len(pairs))
    results = {
        "rows": rows, "differences": differences, "n": len(pairs), "n_seen_left_out": n_seen, "n_inputs_cut": n_cut,
        "n_of_trained_documents": n_trained,
        "pairwise_cosine_ideas": cosine, "pairwise_cosine_thoughts": pairwise_cosine(thoughts_ND),
        "cosine_idea_thought": float((ideas_ND * thoughts_ND).sum(1).mean()), "collapsed": collapsed,
        "input_bytes": mean_bytes(texts), "metrics": summaries.signatures(), "middle": stack.model.settings.middle.kind,
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


def _check_beside(ours: ReasonModel, theirs: ReasonModel, path: Path) -> None:
    if (kind := theirs.settings.middle.kind) != "identity":
        raise UserError(f"--beside {path}: its middle is {kind}; name a run that was trained with --stack.middle.kind identity")
    if ours.home.encoder != theirs.home.encoder or ours.max_input_tokens != theirs.max_input_tokens:
        raise UserError(f"--beside {path}: another encoder or number of tokens is read; train it like the first but for the middle")


class _Writer:
    """Makes the lines of the table for some pairs; the nats of the first `n_nats` references are counted."""

    def __init__(self, pairs: Sequence[Pair], n_nats: int, progress: Progress) -> None:
        self.pairs, self.n_nats, self.progress = pairs, n_nats, progress
        self.targets = [pair.targets[0] for pair in pairs]

    def own_lines(self, stack: Stack, ideas_ND: np.ndarray) -> list[_Written]:
        """With the right idea, another input's, and none. Greedy writing reads only its idea: under another's it is what that one got."""
        own, shift = self.line("learned", stack, ideas_ND), max(1, len(self.pairs) // 2)
        others_ND = np.roll(ideas_ND, -shift, 0)
        other = self._done("shuffled vector", own.texts[shift:] + own.texts[:shift], self._nats(stack, others_ND), own.n_bytes)
        zeros_ND = np.zeros_like(ideas_ND)
        return [own, other, self._done("zero vector", stack.write(zeros_ND[:1]) * len(self.pairs), self._nats(stack, zeros_ND))]

    def line(self, label: str, stack: Stack, ideas_ND: np.ndarray) -> _Written:
        """What a stack makes of ideas."""
        return self._done(label, stack.write(ideas_ND), self._nats(stack, ideas_ND), 2.0 * ideas_ND.shape[1])

    def no_prefix(self, stack: Stack) -> _Written:
        """The LM with the prompt alone."""
        text, nats = stack.read("", self.targets[: self.n_nats])
        return self._done("LM, no prefix", [text] * len(self.pairs), nats)

    def lead(self, stack: Stack) -> _Written:
        """The beginning of the input."""
        how = stack.model.notes["lead"]
        texts = [lead(pair.text, **how) for pair in self.pairs]
        return self._done(f"first {how['k']} {how['unit']}", texts, None, mean_bytes(texts))

    def full_text(self, stack: Stack, limit: int) -> _Written:
        """The LM reading inputs whole, one by one."""
        some = self.pairs[:limit]
        texts, nats = zip(*(stack.read(pair.text, pair.targets[:1]) for pair in some), strict=True)
        joined = tuple(np.concatenate(part) for part in zip(*nats, strict=True))
        return self._done("LM reads the text", list(texts), (joined[0], joined[1]), mean_bytes([pair.text for pair in some]))

    def _nats(self, stack: Stack, ideas_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return stack.nats(ideas_ND[: self.n_nats], self.targets[: self.n_nats])

    def _done(self, label: str, texts: list[str], nats: tuple[np.ndarray, np.ndarray] | None, n_bytes: float | None = None) -> _Written:
        self.progress.advance(1)
        return _Written(label, texts, nats, n_bytes)


def _scored(options: Options, lines: Sequence[_Written], pairs: Sequence[Pair]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the table, and what the first one is ahead of each other that has all inputs."""
    rows, scores = [], {}
    for line in lines:
        n = len(line.texts)
        _, document_N = np.unique([pair.document for pair in pairs[:n]], return_inverse=True)
        drawn_RG = intervals.draw(int(document_N.max()) + 1, options.resamples, options.seed)
        found = summaries.score_summaries(line.texts, [pair.targets for pair in pairs[:n]])
        rows.append(summaries.summary_row(line.label, line.texts, found, document_N, drawn_RG, nats=line.nats, n_bytes=line.n_bytes))
        if n == len(pairs):
            scores[line.label] = found, document_N, drawn_RG
    own, *_ = scores[lines[0].label]
    return rows, [
        summaries.difference(f"{lines[0].label} − {label}", own, theirs, document_N, drawn_RG)
        for label, (theirs, document_N, drawn_RG) in scores.items()
        if label != lines[0].label
    ]


def _unseen(pairs: list[Pair], folder: Path) -> tuple[list[Pair], int, frozenset[str]]:
    """The pairs whose inputs the training has not read, how many it has, and the fingerprints of its documents' names."""
    seen = load_seen(folder)
    kept = [pair for pair in pairs if fingerprint(pair.text) not in seen["inputs"]]
    return kept, len(pairs) - len(kept), seen["documents"]


def _write_out(out: Path, results: dict[str, Any], lines: Sequence[_Written], pairs: Sequence[Pair]) -> None:
    make_folder(out)
    with atomic_write(out / "table.md", "w") as handle:
        handle.write(markdown(results["rows"], SUMMARIES) + "\n\n" + markdown(results["differences"], SUMMARY_DIFFERENCE) + "\n")
    with atomic_write(out / "texts.jsonl", "w") as handle:
        for number, pair in enumerate(pairs):
            wrote = {line.label: line.texts[number] for line in lines if number < len(line.texts)}
            handle.write(json.dumps({"document": pair.document, "references": pair.targets} | wrote, ensure_ascii=False) + "\n")
