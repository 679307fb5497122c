"""Figures as data: what plotly and matplotlib both draw, so that the page and the pictures show the same numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

#: Colours of series, told apart under colour blindness as far as many can be: Okabe and Ito's, then darker and lighter.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"),
    *("#6A3D9A", "#8C564B", "#5B7F00", "#B5179E", "#00798C", "#7F6000"),
)
#: Symbols by plotly's names; matplotlib's beside them.
SYMBOLS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "x"}
#: Strokes by plotly's names; matplotlib's beside them.
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
DARK, GREY = "#222222", "#777777"
#: Width and height of a marker as shares of the axes; of a figure of common size, a little more than it takes.
MARKER = (0.012, 0.025)
#: Share of the horizontal axis over which markers at one place are spread at most.
SPREAD = 0.06


@dataclass(frozen=True)
class Look:
    """How a series looks."""

    colour: str = DARK
    """Colour, #rrggbb."""
    symbol: str = "circle"
    """One of `SYMBOLS`."""
    dash: str = "solid"
    """One of `DASHES`."""


@dataclass(frozen=True)
class Series:
    """Points that belong together: one entry of the legend."""

    name: str
    """Its name."""
    x: list[Any]
    """Where they are: numbers, or texts, which are categories."""
    y: list[float | None]
    """None is a gap."""
    shape: str = "points"
    """``points``, ``steps`` (each value holds until the next), ``marked`` (steps with points) or ``curve`` (points that
    lines join)."""
    look: Look = Look()
    """How they look."""
    low: list[float | None] | None = None
    """Lower ends of the intervals: a band around a line, bars at points."""
    high: list[float | None] | None = None
    """Upper ends."""
    notes: list[str] | None = None
    """What to say of each point where the figure is interactive."""
    shown: bool = True
    """Whether it is shown at first; pictures leave out what is not."""
    drawn_x: list[float] | None = None
    """Where the points are drawn if not at `x`; see `beside_each_other`."""


@dataclass(frozen=True)
class Chart:
    """A figure of points and lines."""

    key: str
    """Name of its picture's file and its place in the page: letters, digits and hyphens."""
    title: str
    """Title."""
    caption: str
    """What there is to see."""
    x_title: str
    """Title of the horizontal axis, with its unit."""
    y_title: str
    """Title of the vertical axis, with its unit."""
    series: list[Series]
    """What is drawn, the first at the bottom."""
    x_log: bool = False
    """Whether the horizontal axis is logarithmic."""
    y_range: tuple[float, float] | None = None
    """What of the vertical axis is seen at first; None is everything."""
    vertical: list[tuple[float, str]] = field(default_factory=list)
    """Upright lines with their labels."""
    horizontal: list[tuple[float, str]] = field(default_factory=list)
    """Level lines with their labels."""


@dataclass(frozen=True)
class HeatMap:
    """A figure of coloured cells with their values in them."""

    key: str
    """As in `Chart`."""
    title: str
    """Title."""
    caption: str
    """What there is to see."""
    x_title: str
    """What columns are."""
    columns: list[str]
    """Names of the columns."""
    rows: list[str]
    """Names of the rows, the first on top."""
    values: list[list[float]]
    """Values by row."""
    unit: str
    """What the colours mean."""
    limits: tuple[float, float]
    """Values of the first and of the last colour."""


Figure = Chart | HeatMap


def look_of(number: int) -> Look:
    """Returns the look of a label by its number: different for at least 48."""
    turn = number // len(COLOURS)
    symbols, dashes = list(SYMBOLS), list(DASHES)
    return Look(COLOURS[number % len(COLOURS)], symbols[turn % len(symbols)], dashes[turn % len(dashes)])


def beside_each_other(series: Sequence[Series], x_log: bool, y_range: tuple[float, float]) -> list[Series]:
    """Moves markers of different series that would hide one another a little aside, in the order of the series.

    Args:
        series: Points with numbers on both axes.
        x_log: Whether the horizontal axis is logarithmic.
        y_range: Ends of the vertical axis.

    Returns:
        The series; those with moved points have `drawn_x`.
    """
    place = math.log10 if x_log else float
    places = [[place(x) for x in each.x] for each in series]
    everywhere = [x for each in places for x in each]
    width = max(everywhere) - min(everywhere) or 1.0
    cells: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, each in enumerate(series):
        for index, (x, y) in enumerate(zip(places[number], each.y, strict=True)):
            if y is not None:
                cell = (round(x / width / MARKER[0]), round(y / (y_range[1] - y_range[0]) / MARKER[1]))
                cells.setdefault(cell, []).append((number, index))
    moved = set()
    for members in cells.values():
        if len({number for number, _ in members}) < 2:
            continue
        step = width * min(MARKER[0], SPREAD / (len(members) - 1))
        for order, (number, index) in enumerate(members):
            places[number][index] += (order - (len(members) - 1) / 2) * step
            moved.add(number)
    return [
        replace(each, drawn_x=[10**x if x_log else x for x in places[number]]) if number in moved else each
        for number, each in enumerate(series)
    ]


def log_ticks(chart: Chart) -> list[float]:
    """Returns where a figure's logarithmic axis is labelled: at 1, 2 and 5 of each power of ten, or at these alone."""
    values = [value for series in chart.series for value in series.x if isinstance(value, int | float) and value > 0]
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if last - first <= 4 else (1,)
    return [step * 10.0**power for power in range(first, last + 1) for step in steps]
