"""A written document as one self-contained HTML page: each sentence shaded by how near it is to its plan, and pictures of the plan."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsm.files import atomic_write


@dataclass(frozen=True)
class Line:
    """One written sentence."""

    text: str
    plan: int
    """Number of its plan, from 0."""
    cosine: float
    """Of its encoding and its plan."""
    nearest: str = ""
    """The stored sentence nearest to its plan, where there is a store."""


@dataclass(frozen=True)
class Page:
    """What the page shows."""

    title: str
    prompt: str
    lines: Sequence[Line]
    facts: dict[str, Any] = field(default_factory=dict)
    images: Sequence[tuple[Path, str]] = ()
    """PNG files with a caption each."""
    sentences_a_paragraph: int = 8


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>
body { font: 17px/1.65 Georgia, serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color: #1c1c1c; background: #fffefb; }
h1 { font-size: 1.5em; } h2 { font: 600 1.05em system-ui, sans-serif; margin-top: 2.4em; border-bottom: 1px solid #ccc; }
.read { color: #666; border-left: 3px solid #ccc; padding-left: 1em; white-space: pre-wrap; }
.line { border-radius: 3px; cursor: help; } .line:hover { outline: 1px solid #1f5f8b; }
.key span { padding: .1em .6em; margin-right: .4em; border-radius: 3px; font: 12px system-ui, sans-serif; }
img { max-width: 100%; } figure { margin: 1em 0; } figcaption, footer, .note { color: #777; font: 13px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; font: 13px/1.4 system-ui, sans-serif; width: 100%; }
th, td { padding: .25em .6em; text-align: left; border-bottom: 1px solid #eee; vertical-align: top; } td.n { text-align: right; }
summary { cursor: pointer; font: 600 14px system-ui, sans-serif; }
</style></head><body>
<h1>{{ page.title }}</h1>
<h2>What was read</h2>
<p class="read">{{ page.prompt }}</p>
<h2>What was written: {{ page.lines | length }} sentences</h2>
<p class="key note">Shade: cosine of a sentence's encoding and its plan.
{% for value in (0.3, 0.5, 0.7, 0.9) %}<span style="background: {{ shade(value) }}">{{ value }}</span>{% endfor %}
Point at a sentence for its numbers.</p>
{% for paragraph in paragraphs %}<p>
{% for line in paragraph %}<span class="line" style="background: {{ shade(line.cosine) }}" title="{{ label(line) }}">{{ line.text }}</span>
{% endfor %}</p>
{% endfor %}
<h2>The plan</h2>
{% for image, caption in page.images %}<figure><img alt="{{ caption }}" src="data:image/png;base64,{{ embed(image) }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
<table>{% for name, value in page.facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>Sentence and plan</h2>
<details><summary>All {{ page.lines | length }} sentences with their cosine</summary>
<table><tr><th>plan</th><th>cosine</th><th>written</th>{% if stored %}<th>stored sentence nearest to the plan</th>{% endif %}</tr>
{% for line in page.lines %}<tr><td class="n">{{ line.plan + 1 }}</td><td class="n">{{ "%.3f" | format(line.cosine) }}</td>
<td>{{ line.text }}</td>{% if stored %}<td>{{ line.nearest }}</td>{% endif %}</tr>
{% endfor %}</table></details>
<footer><p>{{ footer }}</p></footer>
</body></html>
"""


def write_page(path: Path, page: Page, *, footer: str = "") -> Path:
    """Write the page; every text in it is escaped and nothing is fetched when it is opened."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
    size = max(1, page.sentences_a_paragraph)
    paragraphs = [page.lines[start : start + size] for start in range(0, len(page.lines), size)]
    html = environment.from_string(_TEMPLATE).render(
        page=page, paragraphs=paragraphs, shade=shade, label=_label, embed=_embed, footer=footer,
        stored=any(line.nearest for line in page.lines),
    )  # fmt: skip
    with atomic_write(path, "w") as handle:
        handle.write(html)
    return path


def shade(cosine: float) -> str:
    """From red at 0.2 and below to green at 0.9 and above, pale."""
    share = min(1.0, max(0.0, (cosine - 0.2) / 0.7))
    return f"hsl({round(120 * share)} 70% 92%)"


def _label(line: Line) -> str:
    return f"plan {line.plan + 1}, cosine {line.cosine:.3f}" + (f"; nearest stored: {line.nearest}" if line.nearest else "")


def _embed(image: Path) -> str:
    return base64.b64encode(image.read_bytes()).decode()
