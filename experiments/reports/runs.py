"""Each run by itself: its final table, what it found, how fine-tuning went, versions and options, and its files."""

import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from experiments.reports.drawing import COLOURS, Chart, Look, Series
from experiments.reports.page import Section, bullets, escape, paragraph, table
from experiments.reports.searches import Run
from experiments.runs.final_table import Report, cells, headings
from quantenv.core.files import content_hash

#: Curves of a fine-tuning that are drawn: title and factor by key.
CURVES = {"qat/search_accuracy": ("search accuracy (%)", 100.0), "qat/train_loss": ("training loss", 1.0)}
#: Rows of the final table that were fine-tuned, and how their curves look, by name.
LOOKS = {"found": Look(COLOURS[0]), "best uniform": Look(COLOURS[1], "square")}


def runs_section(runs: Sequence[Run], place: Path) -> Section:
    """Writes a section with a part for each run.

    Args:
        runs: The runs.
        place: Folder of the page, which links to files start from.
    """
    section = Section("runs", "Runs")
    for run in runs:
        section.parts.append(f"<h3>{escape(run.title)}</h3>")
        if run.report is None:
            section.parts.append(paragraph("The run has not ended: it has no final table yet.", "missing"))
        else:
            _add_report(section, run, run.report)
        section.parts.append(_details("Options", _preformatted(run.config)))
        section.parts.append(_details("Versions and machine", _named(run.environment)))
        links = (f'<a href="{html.escape(_link(path, place))}">{escape(path.name)}</a>' for path in run.files)
        section.parts.append(f'<p class="quiet">Files: {", ".join(links)}</p>')
    return section


def _add_report(section: Section, run: Run, report: Report) -> None:
    rows = [cells(report, row) for row in report.rows]
    section.parts.append(paragraph("Final table, on the test split, which no choice was made on:", "caption"))
    section.parts.append(table(headings(report), rows, texts=2))
    section.parts.append(bullets([*report.verdicts, *report.notes]))
    section.parts.append(_allocation_table(report))
    for key in CURVES:
        section.add(_curves(run, report, key), level=4)


def _allocation_table(report: Report) -> str:
    """Lists the bits of every layer, of what was found and of the best uniform allocation."""
    allocations = {row.title: row.allocation["layers"] for row in report.rows if row.allocation is not None}
    if not allocations:
        return ""
    names = [layer["name"] for layer in next(iter(allocations.values()))]
    heads = ["layer", *(f"{title}: weights / activations" for title in allocations)]
    bits = [[f"{layer['weight_bits']} / {layer['activation_bits']}" for layer in each] for each in allocations.values()]
    rows = [[name, *column] for name, *column in zip(names, *bits, strict=True)]
    return paragraph("Bits of each layer:", "caption") + table(heads, rows)


def _curves(run: Run, report: Report, key: str) -> Chart | None:
    """Draws a number of each epoch's, of every fine-tuned allocation; None if nothing was fine-tuned."""
    title, factor = CURVES[key]
    series = []
    for row in report.rows:
        points = [(epoch, factor * values[key]) for epoch, values in enumerate(row.epochs) if key in values]
        if points:
            x, y = zip(*points, strict=True)
            series.append(Series(row.title, list(x), list(y), "curve", LOOKS.get(row.name, Look())))
    if not series:
        return None
    return Chart(
        key=f"{re.sub('[^a-z]', '-', key)}-{content_hash([run.folder])[:6]}",
        title=f"Fine-tuning, {title}: {run.title}",
        caption="Quantization-aware fine-tuning by the same recipe, after each epoch; 0 is before training.",
        x_title="epoch",
        y_title=title,
        series=series,
    )


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _preformatted(text: str) -> str:
    return f'<div class="wide"><pre>{escape(text)}</pre></div>'


def _named(values: Mapping[str, str]) -> str:
    return table(["", ""], [[name, value] for name, value in values.items()], texts=2)


def _link(path: Path, place: Path) -> str:
    return quote(os.path.relpath(path.resolve(), place.resolve()))
