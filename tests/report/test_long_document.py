"""The page of a long document escapes what it shows, fetches nothing and shades by cosine."""

from __future__ import annotations

from pathlib import Path

from lsm.report.long_document import Line, Page, shade, write_page
from lsm.report.plots import Panel, plot_curves


def test_page_is_whole_and_escaped(tmp_path: Path) -> None:
    image = plot_curves([Panel("a", "x", "y", {"curve": ([1, 2], [3, 4])})], tmp_path / "a.png", title="t")
    lines = [Line("Said <b>so</b>.", 0, 0.91, 'near "it"'), Line("Second.", 2, 0.25)]
    page = write_page(tmp_path / "p.html", Page("T & U", "Read <i>this</i>", lines, {"plans": 3}, [(image, "drift")], 1)).read_text()
    assert "Said &lt;b&gt;so" in page and "T &amp; U" in page and "<i>" not in page and "http" not in page
    assert shade(0.91) in page and "cosine 0.910" in page and "near &#34;it&#34;" in page and "data:image/png;base64," in page
    assert page.count('class="line"') == 2 and page.count("<p>\n<span") == 2, "one sentence a paragraph"


def test_shade_rises_with_the_cosine_and_has_ends() -> None:
    assert shade(-1) == shade(0.2) != shade(0.5) != shade(0.9) == shade(1)
