"""The page: one HTML file with everything in it, which loads nothing and runs no script but its own two.

A content security policy says so to the browser: scripts are named by their hashes, and no connection is allowed. Text
from folders is escaped wherever it goes.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from experiments.reports.drawing import Figure
from experiments.reports.interactive import draw, plotly_source

STYLE = """
body { margin: 0 auto; max-width: 1180px; padding: 0 24px 60px; color: #1c1c1c; background: #fff;
  font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
h1 { font-size: 27px; margin: 30px 0 4px; }
h2 { font-size: 21px; margin: 44px 0 8px; padding-top: 12px; border-top: 1px solid #ddd; overflow-wrap: anywhere; }
h3 { font-size: 16px; margin: 30px 0 4px; overflow-wrap: anywhere; }
p, li { max-width: 860px; overflow-wrap: anywhere; }
p.caption, p.quiet { color: #555; font-size: 13.5px; margin: 2px 0 6px; }
nav a { margin-right: 16px; white-space: nowrap; }
a { color: #0060a0; text-decoration: none; }
a:hover { text-decoration: underline; }
.short { background: #f3f7fb; border-left: 4px solid #0072b2; padding: 10px 18px; margin: 14px 0; }
.short p { margin: 4px 0; font-weight: 600; max-width: none; }
.missing { background: #fdf6e7; border-left: 4px solid #e69f00; padding: 6px 18px; }
.wide { overflow-x: auto; margin: 8px 0 14px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; text-align: right; border-bottom: 1px solid #e6e6e6; }
th { border-bottom: 2px solid #bbb; font-weight: 600; vertical-align: bottom; }
td.text, th.text { text-align: left; }
tbody tr:hover { background: #f6f8fa; }
summary { cursor: pointer; color: #0060a0; font-size: 14px; }
pre { font-size: 12.5px; }
.figure { width: 100%; min-height: 200px; }
#errors { color: #a00; white-space: pre-wrap; }
@media (max-width: 700px) { body { padding: 0 10px 40px; } }
@media print { nav { display: none; } }
"""

SCRIPT = """
'use strict';
window.addEventListener('error', function (event) {
  document.getElementById('errors').textContent += 'A figure could not be drawn: ' + event.message + '\\n';
});
// On narrow screens a legend beside the plot would leave no room for it: it goes below, a line for each entry.
function fitted(layout, entries, place) {
  if (!layout.legend || place.clientWidth >= 700) { return layout; }
  var title = broken(layout.xaxis.title.text, place.clientWidth / 8), lines = title.split('<br>').length;
  var below = 30 * entries + 16 * lines, narrow = Object.assign({}, layout);
  narrow.legend = Object.assign({}, layout.legend,
    {orientation: 'v', x: 0, xanchor: 'left', y: 0, yanchor: 'bottom', yref: 'container'});
  narrow.height = layout.height + below;
  narrow.margin = Object.assign({}, layout.margin, {l: 64, r: 8, b: 30 + below});
  narrow.xaxis = Object.assign({}, layout.xaxis, {title: {text: title, standoff: 6, font: {size: 12}}});
  return narrow;
}
// A line that is too long is broken between words.
function broken(text, longest) {
  return text.split(' ').reduce(function (lines, word) {
    var last = lines[lines.length - 1];
    return last && (last + ' ' + word).length <= longest
      ? lines.slice(0, -1).concat(last + ' ' + word) : lines.concat(word);
  }, []).join('<br>');
}
document.querySelectorAll('.figure').forEach(function (place) {
  var figure = JSON.parse(document.getElementById('data-' + place.id).textContent);
  var entries = figure.data.filter(function (trace) { return trace.showlegend !== false; }).length;
  var options = {responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d']};
  Plotly.newPlot(place, figure.data, fitted(figure.layout, entries, place), options);
  place.setAttribute('data-drawn', 'yes');
  var wide = place.clientWidth >= 700;
  window.addEventListener('resize', function () {
    if (wide !== place.clientWidth >= 700) {
      wide = !wide;
      Plotly.react(place, figure.data, fitted(figure.layout, entries, place), options);
    }
  });
});
document.body.setAttribute('data-finished', 'yes');
"""


@dataclass
class Section:
    """A part of the page with a heading."""

    key: str
    """Its place, for links: letters, digits and hyphens."""
    title: str
    """Its heading."""
    parts: list[str] = field(default_factory=list)
    """HTML."""
    figures: list[Figure] = field(default_factory=list)
    """Its figures, in order."""

    def add(self, figure: Figure | None, level: int = 3) -> None:
        """Adds a figure with its title and caption, if there is one."""
        if figure is None:
            return
        self.figures.append(figure)
        key = html.escape(figure.key)
        self.parts.append(
            f"<h{level}>{escape(figure.title)}</h{level}>\n{paragraph(figure.caption, 'caption')}\n"
            f'<div class="figure" id="{key}" role="img" aria-label="{html.escape(figure.title)}"></div>'
        )


def escape(text: str) -> str:
    """Escapes text for HTML."""
    return html.escape(text)


def paragraph(text: str, kind: str = "") -> str:
    """Returns text as a paragraph of a class."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(texts: Sequence[str], kind: str = "") -> str:
    """Returns texts as a list."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if kind else f"<ul>{items}</ul>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Returns a table.

    Args:
        heads: Heads of the columns.
        rows: Cells, as many as heads in each row.
        texts: How many columns from the left hold text; the others hold numbers and stand to the right.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        looks = [' class="text"' if index < texts else "" for index in range(len(cells))]
        return "".join(f"<{tag}{look}>{escape(cell)}</{tag}>" for cell, look in zip(cells, looks, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{line(heads, "th")}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def from_markdown(markdown: str, level: int) -> Iterator[str]:
    """Turns the Markdown of a leaderboard into HTML: headings, tables, lists and paragraphs, everything escaped.

    Args:
        markdown: What `experiments.leaderboard.markdown.to_markdown` writes.
        level: Level of its second headings; the first one is left out.
    """
    rows: list[list[str]] = []
    items: list[str] = []
    for text in [*markdown.splitlines(), ""]:
        if text.startswith("|"):
            rows.append([cell.strip() for cell in text.strip("|").split(" | ")])
            continue
        if rows:
            heads, _, *cells = rows
            yield table(heads, [[*row, *[""] * len(heads)][: len(heads)] for row in cells], texts=2)
            rows = []
        if text.startswith("- "):
            items.append(text[2:])
            continue
        if items:
            yield bullets(items, "quiet")
            items = []
        if text.startswith("## "):
            yield f"<h{level}>{escape(text[3:])}</h{level}>"
        elif text and not text.startswith("# "):
            yield paragraph(text, "quiet")


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """Returns the whole page.

    Args:
        title: Its title.
        about: A line below it.
        sections: Its sections.
    """
    library = plotly_source().replace("\r\n", "\n").replace("\r", "\n")  # as browsers read it before they hash it
    data = "\n".join(
        f'<script type="application/json" id="data-{html.escape(figure.key)}">{_json(draw(figure))}</script>'
        for section in sections
        for figure in section.figures
    )
    policy = (
        f"default-src 'none'; script-src '{_hash(library)}' '{_hash(SCRIPT)}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    links = " ".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in sections)
    body = "\n".join(
        f'<section id="{section.key}">\n<h2>{escape(section.title)}</h2>\n' + "\n".join(section.parts) + "\n</section>"
        for section in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy, quote=False)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{paragraph(about, "quiet")}
<nav>{links}</nav>
<noscript><p class="missing">The figures need JavaScript; the tables and sentences do not.</p></noscript>
<div id="errors"></div>
{body}
{data}
<script>{library}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _json(content: object) -> str:
    """Writes JSON that cannot end the script element it stands in."""
    text = json.dumps(content, allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
