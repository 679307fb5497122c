"""An allocation as a figure, drawn with matplotlib's Agg canvas: no pyplot, no display, no global state."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from quantenv.allocation import MAX_BITS
from quantenv.layers import LayerSpec

#: Blue and orange of the Okabe-Ito palette, told apart under colour blindness.
WEIGHT_COLOUR, ACTIVATION_COLOUR = "#0072B2", "#E69F00"


def allocation_figure(layers: Sequence[LayerSpec], bits: np.ndarray, title: str = "") -> Figure:
    """Draws weight and activation bits of every layer as pairs of bars.

    Args:
        layers: The network's layers.
        bits: int (L, 2), weight and activation bits; 0 where nothing is settled yet.
        title: Title of the figure.

    Returns:
        The figure, with an Agg canvas.
    """
    bits = np.asarray(bits)
    places = np.arange(len(layers))
    figure = Figure(figsize=(max(4.0, 1.5 + 0.45 * len(layers)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for column, (label, colour) in enumerate((("weights", WEIGHT_COLOUR), ("activations", ACTIVATION_COLOUR))):
        bars = axes.bar(places + 0.4 * (column - 0.5), bits[:, column], width=0.38, color=colour, label=label)
        axes.bar_label(bars, labels=[str(bit) if bit else "?" for bit in bits[:, column]], fontsize=7)
    axes.set_xticks(places, [layer.name for layer in layers], rotation=45, ha="right", fontsize=8)
    axes.set_ylim(0, MAX_BITS + 1)
    axes.set_yticks(range(0, MAX_BITS + 1, 2))
    axes.set_ylabel("bits")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def figure_pixels(figure: Figure) -> np.ndarray:
    """Renders a figure with an Agg canvas to pixels, uint8 (height, width, 3)."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
