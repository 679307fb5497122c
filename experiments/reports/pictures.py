"""Figures as PNGs, drawn with matplotlib's Agg canvas: the same numbers as on the page, for papers and slides."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from experiments.reports.drawing import DASHES, SYMBOLS, Chart, Figure, HeatMap, Series, log_ticks
from quantenv.core.files import write_atomically

DPI = 110
#: Characters of a name in a picture; the page has all of them.
LONGEST = 60


def save_picture(figure: Figure, path: Path) -> None:
    """Draws a figure into a PNG file, atomically."""
    # Names from folders are no formulas: a dollar sign in one would be read as TeX, and be an error.
    with matplotlib.rc_context({"text.parse_math": False}):
        canvas = _heat_map(figure) if isinstance(figure, HeatMap) else _chart(figure)
        FigureCanvasAgg(canvas)
        write_atomically(path, lambda file: canvas.savefig(file, format="png", dpi=DPI, metadata={"Software": None}))


def _chart(chart: Chart) -> Canvas:
    canvas = Canvas(figsize=(9, 4.8), layout="constrained")
    axes = canvas.add_subplot()
    handles: list[Any] = []
    names: list[str] = []
    categories = list(dict.fromkeys(value for series in chart.series for value in series.x if isinstance(value, str)))
    shown = [series for series in chart.series if series.shown]
    for number, series in enumerate(shown):
        aside = 0.6 * ((number + 0.5) / len(shown) - 0.5)  # categories stand beside each other
        handles.append(_draw(axes, series, {name: place + aside for place, name in enumerate(categories)}))
        names.append(_short(series.name))
    for value, name in chart.vertical:
        axes.axvline(value, color="#777777", linewidth=0.8, linestyle=":")
        axes.annotate(
            _short(name), (value, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=8, ha="right"
        )
    for value, name in chart.horizontal:
        axes.axhline(value, color="#555555", linewidth=0.9, linestyle="--")
        axes.annotate(
            _short(name),
            (0.01, value),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            va="bottom",
            annotation_clip=True,
        )
    if chart.x_log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [tick for tick in log_ticks(chart) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    if categories:
        axes.set_xticks(range(len(categories)), categories)
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)
    axes.set_xlabel(chart.x_title)
    axes.set_ylabel(chart.y_title)
    axes.set_title(_short(chart.title, 100), fontsize=11)
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(handles, names, loc="outside right upper", frameon=False, fontsize=8)
    return canvas


def _draw(axes: Axes, series: Series, places: dict[str, float]) -> Any:
    """Draws a series; returns what stands for it in the legend."""
    drawn = series.x if series.drawn_x is None else series.drawn_x
    x = np.array([places[value] if isinstance(value, str) else value for value in drawn], dtype=float)
    y = _numbers(series.y)
    ends = None if series.low is None or series.high is None else (_numbers(series.low), _numbers(series.high))
    if series.shape == "points":
        if ends is not None:
            axes.errorbar(
                x, y, np.abs(np.stack(ends) - y), fmt="none", ecolor=series.look.colour, elinewidth=1, capsize=2
            )
        return axes.plot(x, y, SYMBOLS[series.look.symbol], color=series.look.colour, markersize=5)[0]
    marks: Any = {} if series.shape == "steps" else {"marker": SYMBOLS[series.look.symbol]}
    if ends is not None:
        axes.fill_between(x, *ends, color=series.look.colour, alpha=0.16, linewidth=0, step="post")
    return axes.plot(
        x,
        y,
        linestyle=DASHES[series.look.dash],
        color=series.look.colour,
        linewidth=1.6,
        markersize=4,
        drawstyle="default" if series.shape == "curve" else "steps-post",
        **marks,
    )[0]


def _heat_map(figure: HeatMap) -> Canvas:
    rows, columns = len(figure.rows), len(figure.columns)
    canvas = Canvas(figsize=(max(6.0, 2.6 + 0.42 * columns), 2.0 + 0.3 * rows), layout="constrained")
    axes = canvas.add_subplot()
    low, high = figure.limits
    image = axes.imshow(figure.values, cmap="Blues", vmin=low, vmax=high * 1.15, aspect="auto")
    axes.set_xticks(range(columns), [_short(name, 30) for name in figure.columns], rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(rows), [_short(name) for name in figure.rows], fontsize=8)
    for row, values in enumerate(figure.values):
        for column, value in enumerate(values):
            colour = "white" if value > 0.65 * high else "black"
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel(figure.x_title)
    axes.set_title(_short(figure.title, 100), fontsize=11)
    canvas.colorbar(image, ax=axes, label=figure.unit, fraction=0.04, boundaries=np.linspace(low, high, 141)).set_ticks(
        list(range(math.ceil(low), math.floor(high) + 1))
    )
    return canvas


def _numbers(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _short(name: str, longest: int = LONGEST) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
