"""Rows of a scoreboard as a table: one place decides columns and digits, for the terminal, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_WIDEST = 400
Kind = Literal["text", "count", "share", "number", "significant", "fine", "bytes"]


@dataclass(frozen=True)
class Column:
    """One column: key in the row, heading, and how its values are written."""

    key: str
    heading: str
    """May hold line breaks, for the terminal."""
    kind: Kind = "number"
    interval: bool = False
    """Show the interval on the terminal too, where room is short; Markdown and HTML show every interval."""


NEXT_SENTENCE = (
    Column("predictor", "predictor", "text"),
    Column("n", "n", "count"),
    Column("recall_at_1", "recall\n@1", "share"),
    Column("recall_at_10", "recall\n@10", "share", interval=True),
    Column("recall_at_100", "recall\n@100", "share"),
    Column("median_rank", "median\nrank", "count", interval=True),
    Column("mrr", "MRR", "share"),
    Column("document_recall_at_1", "in-document\nrecall@1", "share", interval=True),
    Column("contrastive_accuracy", "contrastive\naccuracy", "share"),
    Column("cosine", "cosine", "share"),
    Column("l2", "l2", "share"),
    Column("l2_gap", "l2 − l2 to\nnearest", "share"),
    Column("effective_rank", "effective\nrank", "count"),
    Column("mean_pairwise_cosine", "pairwise\ncosine", "share"),
)
DRIFT = (
    Column("way", "goes on as", "text"),
    Column("steps", "steps", "text"),
    Column("cosine_truth", "cosine to\nthe truth", "share", interval=True),
    Column("cosine_start", "to what\nwas read", "share"),
    Column("cosine_before", "to the one\nbefore", "share"),
    Column("l2_nearest", "l2 to nearest\nsentence", "share"),
    Column("effective_rank", "effective\nrank", "count"),
)
DOMAIN = Column("domain", "input", "text")
ENCODE = (
    Column("label", "system", "text"),
    Column("sentences_per_second", "sentences/s", "number", interval=True),
    Column("ratio", "ratio to\nthe default", "number"),
    Column("roofline_share", "share of\nroofline", "share"),
    Column("cosine_mean", "cosine,\nmean", "fine"),
    Column("cosine_min", "cosine,\nleast", "fine"),
)
WORDING = (
    Column("predictor", "worded", "text"),
    Column("rouge_l", "ROUGE-L\nto the truth", "share", interval=True),
    Column("token_f1", "token-F1", "share"),
    Column("cosine", "cosine, text\nre-encoded", "share", interval=True),
    Column("mutual_information", "nats a token\nof context", "share", interval=True),
    Column("l2_round_trip_gap", "l2 − l2 of text\nre-encoded", "share", interval=True),
    Column("repeated", "said\nbefore", "share"),
    Column("tokens", "tokens", "count"),
)
FORECAST = (
    Column("predictor", "told by", "text"),
    Column("n", "sentences", "count"),
    Column("recall_at_20", "among the 20\nmost expected", "share", interval=True),
    Column("recall_at_100", "among 100", "share", interval=True),
    Column("explained", "of the bag\nexplained", "share", interval=True),
)
CLOZE = (
    Column("predictor", "chosen by", "text"),
    Column("n", "stories", "count"),
    Column("accuracy", "accuracy", "share", interval=True),
    Column("lead_accuracy", "the model's\nlead", "share", interval=True),
)
CONTEXT_CURVE = (
    Column("context", "context", "text"),
    Column("length", "sentences", "count"),
    Column("n", "n", "count"),
    Column("recall_at_10", "recall\n@10", "share"),
    Column("mrr", "MRR", "share"),
    Column("contrastive_accuracy", "contrastive\naccuracy", "share"),
    Column("cosine", "cosine", "share"),
    Column("lead_mrr", "whole context's\nlead in MRR", "share", interval=True),
    Column("lead_cosine", "lead in\ncosine", "share", interval=True),
)
WINDOWS = (
    Column("length", "sentences\nread", "count"),
    Column("times", "times as\ntrained"),
    Column("rope_scaling", "rope\nscaled", "text"),
    Column("n", "n", "count"),
    Column("recall_at_10", "recall\n@10", "share"),
    Column("mrr", "MRR", "share"),
    Column("contrastive_accuracy", "contrastive\naccuracy", "share"),
    Column("cosine", "cosine", "share"),
    Column("gain_mrr", "gain over\ntrained length", "share", interval=True),
    Column("gain_cosine", "gain in\ncosine", "share", interval=True),
)
DIFFERENCE = (
    Column("compared", "compared", "text"),
    Column("recall_at_1", "recall@1", "share", interval=True),
    Column("recall_at_10", "recall@10", "share", interval=True),
    Column("mrr", "MRR", "share", interval=True),
    Column("document_recall_at_1", "in-document\nrecall@1", "share", interval=True),
    Column("document_mrr", "in-document\nMRR", "share", interval=True),
    Column("cosine", "cosine", "share"),
)
COMPRESSION = (
    Column("ratio", "tokens a\nsoft token", "count"),
    Column("label", "context", "text"),
    Column("positions", "positions", "count"),
    Column("f1", "F1", "share", interval=True),
    Column("em", "EM", "share"),
    Column("first_token", "first\ntoken", "share"),
    Column("nll", "nats a\ntoken", "share", interval=True),
    Column("f1_retained", "F1 of\nfull text's", "share"),
    Column("nll_kept", "of its gain\nin nats", "share", interval=True),
    Column("gap", "forced −\nfree F1", "share"),
    Column("unique_answers", "unique\nanswers", "share"),
)
COMPRESSION_DIFFERENCE = (
    Column("ratio", "tokens a\nsoft token", "count"),
    Column("compared", "compared", "text"),
    Column("f1", "F1", "share", interval=True),
    Column("nll", "nats", "share", interval=True),
)
COMPRESSION_BYTES = (
    Column("ratio", "tokens a\nsoft token", "count"),
    Column("bits", "bits", "count"),
    Column("codes", "codes"),
    Column("width", "entries", "count"),
    Column("wire_bytes", "bytes", "bytes"),
    Column("utf8_bytes", "UTF-8", "bytes"),
    Column("zstd_bytes", "zstd", "bytes"),
    Column("over_zstd", "times\nzstd"),
    Column("bits_a_code_to_beat_zstd", "bits a code\nto beat zstd"),
    Column("bits_an_entry_to_beat_zstd", "bits an\nentry", "share"),
)
COMPRESSION_JOINT = (Column("label", "answers of", "text"), Column("f1", "F1", "share", interval=True), Column("em", "EM", "share"))
ROUNDTRIP = (
    Column("label", "decoder", "text"),
    Column("n", "n", "count"),
    Column("exact_match", "exact", "share"),
    Column("certified", "certified", "share"),
    Column("bleu", "BLEU", interval=True),
    Column("token_f1", "token F1", "share", interval=True),
    Column("chrf", "chrF"),
    Column("cosine", "cosine", "share", interval=True),
    Column("cosine_independent", "cosine\n(independent)", "share"),
    Column("bytes_per_sentence", "vector\nbytes", "bytes"),
    Column("residual_bytes", "of it\ncode", "bytes"),
    Column("utf8_bytes", "UTF-8\nbytes", "bytes"),
    Column("zstd_bytes", "zstd\nbytes", "bytes"),
    Column("zstd_dictionary_bytes", "zstd with\ndictionary", "bytes"),
    Column("lm_entropy_bytes", "LM\nentropy", "bytes"),
    Column("encoder_calls", "encoder\ncalls"),
    Column("sentences_per_second", "sentences\n/s"),
)
SUMMARIES = (
    Column("label", "written from", "text"),
    Column("n", "n", "count"),
    Column("rouge_1", "ROUGE-1", interval=True),
    Column("rouge_2", "ROUGE-2", interval=True),
    Column("rouge_l", "ROUGE-L", interval=True),
    Column("bleu", "BLEU"),
    Column("meteor", "METEOR"),
    Column("nats_per_token", "nats a token\nof the reference", "share", interval=True),
    Column("unique", "different\ntexts", "count"),
    Column("words", "words"),
    Column("bytes", "bytes\nread", "bytes"),
    Column("rouge_1_per_kilobyte", "ROUGE-1\na kilobyte"),
)
SUMMARY_DIFFERENCE = (
    Column("label", "compared", "text"),
    Column("rouge_1", "ROUGE-1", interval=True),
    Column("rouge_2", "ROUGE-2", interval=True),
    Column("rouge_l", "ROUGE-L", interval=True),
    Column("meteor", "METEOR", interval=True),
)
NEGATION = (
    Column("label", "decoder", "text"),
    Column("kind", "differs in", "text"),
    Column("n", "pairs", "count"),
    Column("right", "right one\nback", "share", interval=True),
    Column("other", "the other", "share"),
    Column("neither", "neither", "share"),
    Column("both_right", "both of\na pair", "share", interval=True),
    Column("pair_cosine", "cosine\nof pair", "share"),
    Column("control_cosine", "cosine\nof control", "share"),
    Column("closer_than_control", "nearer than\ncontrol", "share"),
    Column("differ_float16", "differ in\nfloat16", "share"),
)
COST = (
    Column("label", "system", "text"),
    Column("pass", "pass", "text"),
    Column("tokens", "tokens", "count"),
    Column("sentences", "sentences", "count"),
    Column("seconds", "seconds", "significant", interval=True),
    Column("extrapolated_seconds", "extrapolated,\nnot measured", "significant"),
    Column("peak_mebibytes", "peak\nMiB", "bytes"),
    Column("gflop", "GFLOP", "significant"),
    Column("note", "note", "text"),
)
COST_SLOPES = (
    Column("label", "system", "text"),
    Column("pass", "pass", "text"),
    Column("slope", "all lengths"),
    Column("steps", "from each length to the next", "text"),
)
ROUNDTRIP_BY_LENGTH = (ROUNDTRIP[0], Column("length", "characters", "text"), *ROUNDTRIP[1:9], Column("utf8_bytes", "UTF-8\nbytes", "bytes"))


def cell(row: dict[str, Any], column: Column, *, with_interval: bool = True) -> str:
    """A value as text, its interval behind it when the row has one."""
    text = _written(row.get(column.key), column.kind)
    interval = (row.get("intervals") or {}).get(column.key)
    if with_interval and interval and None not in interval:
        text += f" [{_written(interval[0], column.kind)}, {_written(interval[1], column.kind)}]"
    return text


def markdown(rows: Sequence[dict[str, Any]], columns: Sequence[Column], *, with_interval: bool = True) -> str:
    """A GitHub table, intervals in brackets."""
    lines = ["| " + " | ".join(" ".join(column.heading.split()) for column in columns) + " |"]
    lines.append("|" + "|".join("---" if column.kind == "text" else "---:" for column in columns) + "|")
    for row in rows:
        cells = (cell(row, column, with_interval=with_interval).replace("|", "\\|") for column in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def show(rows: Sequence[dict[str, Any]], columns: Sequence[Column], *, title: str) -> None:
    """Print a table on stdout. It is as wide as it needs to be: a narrow terminal folds lines, a file gets them whole."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="left" if column.kind == "text" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row, column, with_interval=column.interval) for column in columns))
    Console(markup=False, highlight=False, width=_WIDEST).print(table, crop=False)


def _written(value: Any, kind: Kind) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if kind == "text":
        return str(value)
    if kind == "share":
        return f"{value:.3f}"
    if kind == "fine":
        return f"{value:.6f}"
    if kind == "significant":  # three digits, whatever the size
        return f"{float(f'{value:.3g}'):,.{max(0, 2 - math.floor(math.log10(abs(value) or 1)))}f}"
    if kind in ("count", "bytes"):
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"
