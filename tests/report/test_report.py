"""Tables in all three dresses, plots that are pictures, and a report page that escapes what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsm.files import write_json
from lsm.provenance import report
from lsm.report import tables
from lsm.report.html import Section, write_report
from lsm.report.job import write_job_report
from lsm.report.plots import plot_next_sentence, plot_roundtrip, plot_roundtrip_by_length

PNG = b"\x89PNG"
NEXT = [
    {"predictor": "model", "n": 1200, "recall_at_10": 0.5678, "median_rank": 7.0, "intervals": {"recall_at_10": [0.51, 0.62]}},
    {"predictor": "last | vector", "n": 1200, "recall_at_10": 0.4, "median_rank": 11.0, "intervals": {"recall_at_10": [None, None]}},
]
TRIP = [
    {"label": "prefix", "vector": "own", "length": "1–50", "n": 3, "exact_match": 0.1, "bleu": 12.34, "token_f1": 0.5, "cosine": 0.8,
     "cosine_independent": None, "intervals": {"bleu": [10.0, 15.0]}},
    {"label": "prefix, zero vector", "vector": "zero", "length": "51–100", "n": 3, "exact_match": 0.0, "bleu": 0.0, "token_f1": 0.1,
     "cosine": -0.1, "cosine_independent": None, "intervals": {}},
]  # fmt: skip


def test_markdown_has_values_intervals_and_escapes_bars() -> None:
    text = tables.markdown(NEXT, tables.NEXT_SENTENCE)
    header, rule, first, second = text.splitlines()
    assert header.count("|") == rule.count("|") == len(tables.NEXT_SENTENCE) + 1
    assert "0.568 [0.510, 0.620]" in first and "1,200" in first and "–" in first
    assert "last \\| vector" in second and "nan" not in second


def test_terminal_table_is_whole_on_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    tables.show(NEXT, tables.NEXT_SENTENCE, title="Next sentence")
    shown = capsys.readouterr().out
    assert "0.568 [0.510, 0.620]" in shown and "pairwise" in shown and "…" not in shown


def test_plots_are_pictures(tmp_path: Path) -> None:
    for path in (
        plot_next_sentence(NEXT, tmp_path / "a.png"),
        plot_roundtrip(TRIP, tmp_path / "b.png"),
        plot_roundtrip_by_length(TRIP, tmp_path / "c.png"),
    ):
        assert path.read_bytes().startswith(PNG)


def test_report_escapes_and_embeds(tmp_path: Path) -> None:
    image = plot_roundtrip(TRIP, tmp_path / "b.png")
    section = Section("A & B", rows=NEXT, columns=tables.NEXT_SENTENCE, images=[image], texts=[("said", "<script>alert(1)</script>")])
    page = write_report(tmp_path / "report.html", "Title", [section]).read_text()
    assert "A &amp; B" in page and "<script>" not in page and "data:image/png;base64," in page
    assert "0.568<small>[0.510, 0.620]</small>" in page
    assert "http" not in page


def test_job_report_shows_what_is_there(tmp_path: Path) -> None:
    write_json(tmp_path / "phrases.json", {"format": "no report"})
    generated = {"decoder": "prefix", "n_prompt_sentences": 2, "sentences": ["One was written.", "So was two."]}
    write_json(tmp_path / "generate-prefix.json", report(generated, seed=0, device="cpu", elapsed_seconds=1.5))
    (tmp_path / "speech-prefix.txt").write_text("Fellow citizens. Hear.\n\nOne was written. So was two.\n")
    trip = {"rows": TRIP, "by_length": TRIP, "metrics": {"bleu": "sacrebleu"}, "texts": [{"text": "True.", "prefix": "Read back."}]}
    write_json(tmp_path / "roundtrip.json", report(trip, seed=0, device="cpu", elapsed_seconds=65))
    page = write_job_report(tmp_path, title="Job").read_text()
    assert "Fellow citizens. Hear." in page and "So was two." in page and "Read back." in page
    assert "1 min 05 s" in page and "Next sentence" not in page
