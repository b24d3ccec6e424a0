"""One self-contained HTML file that shows tables, plots and texts of a piece of work; nothing is fetched when it is opened."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsm.files import atomic_write
from lsm.report.tables import Column, cell


@dataclass
class Section:
    """A part of the report; whatever is filled in is shown, in this order."""

    title: str
    words: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[dict[str, Any]] = ()
    columns: Sequence[Column] = ()
    images: Sequence[Path] = ()
    """PNG files, put into the page."""
    texts: Sequence[tuple[str, str]] = ()
    """(heading, text) pairs; white space is kept."""


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #1c1c1c; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ccc; } h3 { font-size: 1em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
th.text, td.text { text-align: left; } td small { display: block; color: #777; white-space: nowrap; }
img { max-width: 100%; } pre { white-space: pre-wrap; background: #f6f6f4; padding: 1em; font: 14px/1.5 Georgia, serif; }
footer { margin-top: 3em; color: #777; font-size: 12px; }
</style></head><body>
<h1>{{ title }}</h1>
{% for section in sections %}<section><h2>{{ section.title }}</h2>
{% if section.words %}<p>{{ section.words }}</p>{% endif %}
{% if section.facts %}<table>
{% for name, value in section.facts.items() %}
<tr><th class="text">{{ name }}</th><td class="text">{{ value }}</td></tr>
{% endfor %}</table>{% endif %}
{% if section.rows %}<div class="wide"><table><tr>
{% for column in section.columns %}<th class="{{ column.kind }}">{{ column.heading }}</th>{% endfor %}</tr>
{% for row in section.rows %}<tr>
{% for column in section.columns %}{% set value, interval = parts(row, column) %}
<td class="{{ column.kind }}">{{ value }}{% if interval %}<small>{{ interval }}</small>{% endif %}</td>
{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% for image in section.images %}<p><img alt="{{ image.stem }}" src="data:image/png;base64,{{ embed(image) }}"></p>{% endfor %}
{% for heading, text in section.texts %}<h3>{{ heading }}</h3><pre>{{ text }}</pre>{% endfor %}
</section>{% endfor %}
<footer>{{ footer }}</footer>
</body></html>
"""


def write_report(path: Path, title: str, sections: Sequence[Section], *, footer: str = "") -> Path:
    """Write the report; every text in it is escaped."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
    page = environment.from_string(_TEMPLATE).render(title=title, sections=sections, footer=footer, parts=_parts, embed=_embed)
    with atomic_write(path, "w") as handle:
        handle.write(page)
    return path


def _parts(row: dict[str, Any], column: Column) -> tuple[str, str]:
    value = cell(row, column, with_interval=False)
    return value, cell(row, column).removeprefix(value).strip()


def _embed(image: Path) -> str:
    return base64.b64encode(image.read_bytes()).decode()
