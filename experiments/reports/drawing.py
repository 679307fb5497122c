"""Figures as data: what plotly and matplotlib both draw, so that the page and the pictures show the same numbers."""

import math
from dataclasses import dataclass, field
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
    """``points``, ``steps`` (each value holds until the next) or ``marked`` (steps with points)."""
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


def log_ticks(chart: Chart) -> list[float]:
    """Returns where a figure's logarithmic axis is labelled: at 1, 2 and 5 of each power of ten, or at these alone."""
    values = [value for series in chart.series for value in series.x if isinstance(value, int | float) and value > 0]
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if last - first <= 4 else (1,)
    return [step * 10.0**power for power in range(first, last + 1) for step in steps]
