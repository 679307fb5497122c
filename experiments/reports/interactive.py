"""Figures for the page, drawn with plotly. Names are escaped: plotly reads a part of HTML in every text."""

import html
import importlib
from typing import Any

from experiments.reports.drawing import GREY, Chart, Figure, HeatMap, Series, log_ticks
from quantenv.core.errors import QuantenvError

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
GRID = "#e6e6e6"


def require_plotly() -> None:
    """Raises QuantenvError if plotly, which draws the page's figures, is not installed."""
    _plotly("graph_objects")


def plotly_source() -> str:
    """Returns plotly's JavaScript."""
    return _plotly("offline").get_plotlyjs()


def draw(figure: Figure) -> dict[str, Any]:
    """Returns a figure as plotly's JSON: data and layout."""
    graph = _plotly("graph_objects")
    drawn = _heat_map(graph, figure) if isinstance(figure, HeatMap) else _chart(graph, figure)
    drawn.update_layout(
        template="none",
        font={"family": FONT, "size": 13},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"font": {"family": FONT}},
    )
    content: dict[str, Any] = drawn.to_plotly_json()
    content["layout"].pop("template", None)  # plotly's own look is not used
    return {"data": list(content["data"]), "layout": content["layout"]}


def text(name: str) -> str:
    """Escapes a text for plotly, which decodes entities but would turn tags into markup."""
    return html.escape(name, quote=False)


def _chart(graph: Any, chart: Chart) -> Any:
    drawn = graph.Figure()
    for number, series in enumerate(chart.series):
        for trace in _traces(graph, series, f"series {number}"):
            drawn.add_trace(trace)
    axis = {"showline": True, "linecolor": GREY, "gridcolor": GRID, "zeroline": False, "ticks": "outside"}
    drawn.update_xaxes(title={"text": text(chart.x_title)}, **axis)
    drawn.update_yaxes(title={"text": text(chart.y_title)}, **axis)
    if chart.x_log:
        ticks = log_ticks(chart)
        drawn.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,g}" for tick in ticks])
    elif any(isinstance(value, str) for series in chart.series for value in series.x):
        drawn.update_xaxes(type="category")
        drawn.update_layout(scattermode="group", scattergap=0.4)  # beside each other
    if chart.y_range is not None:
        drawn.update_yaxes(range=list(chart.y_range))
    label = {"size": 12, "color": "#555555"}
    for value, name in chart.vertical:
        drawn.add_vline(
            value,
            line={"color": GREY, "width": 1, "dash": "dot"},
            annotation={"text": text(name), "font": label, "textangle": -90, "yanchor": "bottom", "xanchor": "right"},
            annotation_position="bottom left",
        )
    for value, name in chart.horizontal:
        drawn.add_hline(
            value,
            line={"color": "#555555", "width": 1.2, "dash": "dash"},
            annotation={"text": text(name), "font": label, "bgcolor": "rgba(255,255,255,0.8)"},
            annotation_position="top left",
        )
    drawn.update_layout(
        height=480,
        margin={"l": 70, "r": 20, "t": 34, "b": 60},
        legend={"x": 1.02, "y": 1, "bgcolor": "rgba(255,255,255,0)", "font": {"size": 12}},
        showlegend=True,
        hovermode="closest",
    )
    return drawn


def _traces(graph: Any, series: Series, entry: str) -> list[Any]:
    """Returns a series' traces; its legend entry switches them together."""
    visible = True if series.shown else "legendonly"
    drawn = series.x if series.drawn_x is None else series.drawn_x
    common = {"name": text(series.name), "legendgroup": entry, "visible": visible, "x": drawn}
    traces = []
    line = {"color": series.look.colour, "dash": series.look.dash, "width": 2}
    if series.shape in ("steps", "marked"):
        line["shape"] = "hv"
    marks = series.low is not None and series.shape == "points"
    if series.low is not None and series.high is not None and not marks:
        for ends, fill in ((series.high, None), (series.low, "tonexty")):
            traces.append(
                graph.Scatter(
                    **common,
                    y=ends,
                    mode="lines",
                    line={"width": 0, "shape": line.get("shape", "linear"), "color": series.look.colour},
                    fill=fill,
                    fillcolor=_transparent(series.look.colour),
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
    named = "<extra>%{fullData.name}</extra>"
    trace = graph.Scatter(
        **common,
        y=series.y,
        mode={"points": "markers", "marked": "lines+markers", "steps": "lines", "curve": "lines+markers"}[series.shape],
        line=line,
        marker={"color": series.look.colour, "symbol": series.look.symbol, "size": 8, "opacity": 0.85},
        text=None if series.notes is None else [text(note) for note in series.notes],
        customdata=series.x,  # where a point is, wherever it is drawn
        hovertemplate=f"%{{customdata:.4~g}}, %{{y:.2f}}{'<br>%{text}' if series.notes else ''}" + named,
    )
    if any(isinstance(value, str) for value in series.x):
        trace.hovertemplate = "%{x}: %{y:.2f}" + named
    if marks and series.high is not None and series.low is not None and any(end is not None for end in series.low):
        above, below = (
            [None if end is None or y is None else sign * (end - y) for end, y in zip(ends, series.y, strict=True)]
            for sign, ends in ((1, series.high), (-1, series.low))
        )
        trace.error_y = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.2}
    return [*traces, trace]


def _heat_map(graph: Any, figure: HeatMap) -> Any:
    columns = [f"{number} {text(name)}" for number, name in enumerate(figure.columns, start=1)]
    rows = [text(name) for name in figure.rows]
    cells = [[f"{value:.2g}" for value in row] for row in figure.values]
    drawn = graph.Figure(
        graph.Heatmap(
            z=figure.values,
            x=columns,
            y=rows,
            text=cells if len(columns) <= 40 else None,
            texttemplate="%{text}" if len(columns) <= 40 else None,
            zmin=figure.limits[0],
            zmax=figure.limits[1],
            colorscale=[[0, "#f7fbff"], [0.4, "#9ecae1"], [0.7, "#4292c6"], [1, "#08519c"]],
            colorbar={
                "title": {"text": text(figure.unit)},
                "dtick": 1,
                "lenmode": "pixels",
                "len": 190,
                "y": 1,
                "yanchor": "top",
            },
            xgap=1,
            ygap=1,
            hovertemplate="%{y}<br>%{x}: %{z:.2f} bits<extra></extra>",
        )
    )
    drawn.update_yaxes(autorange="reversed", automargin=True, ticks="", type="category")
    drawn.update_xaxes(
        title={"text": text(figure.x_title)}, tickangle=-60, automargin=True, type="category", tickmode="linear"
    )
    names = min(210, 30 + 6 * max(map(len, columns)))  # pixels that slanted names take
    drawn.update_layout(height=max(90 + 26 * len(rows) + names, 240), margin={"l": 90, "r": 20, "t": 34, "b": 60})
    return drawn


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def _plotly(module: str) -> Any:
    """Imports a part of plotly, which only reports need."""
    try:
        return importlib.import_module(f"plotly.{module}")
    except ImportError as error:
        raise QuantenvError(
            f"A report's page is drawn with plotly ({error}): pip install 'quantenv[benchmark]'"
        ) from error
