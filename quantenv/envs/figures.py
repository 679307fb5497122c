"""An allocation as a figure, drawn with matplotlib's Agg canvas: no pyplot, no display, no global state."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from quantenv.core.allocation import MAX_BITS
from quantenv.core.layers import LayerSpec

#: Blue and orange of the Okabe-Ito palette, told apart under colour blindness.
WEIGHT_COLOUR, ACTIVATION_COLOUR = "#0072B2", "#E69F00"


#: Size of a figure in inches: 480 x 320 pixels, of which a card of TensorBoard shows about two thirds.
CARD = (4.8, 3.2)
#: Layers that are named on an axis at most, and characters of a name: what stays readable at that size.
MOST_NAMES, LONGEST_NAME = 12, 16
#: Font sizes in points.
TITLE, LABEL, TICK = 12, 11, 10


def allocation_figure(layers: Sequence[LayerSpec], bits: np.ndarray, title: str = "") -> Figure:
    """Draws weight and activation bits of every layer as pairs of bars, readable at the size of a card.

    Args:
        layers: The network's layers.
        bits: int (L, 2), weight and activation bits; 0 where nothing is settled yet.
        title: Title of the figure.

    Returns:
        The figure, with an Agg canvas; of more layers than `MOST_NAMES`, it names some.
    """
    bits = np.asarray(bits)
    places = np.arange(len(layers))
    figure = Figure(figsize=CARD, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for column, (label, colour) in enumerate((("weights", WEIGHT_COLOUR), ("activations", ACTIVATION_COLOUR))):
        bars = axes.bar(places + 0.4 * (column - 0.5), bits[:, column], width=0.4, color=colour, label=label)
        if len(layers) <= MOST_NAMES:
            axes.bar_label(bars, labels=[str(bit) if bit else "?" for bit in bits[:, column]], fontsize=TICK)
    axes.set_xticks(*named_layers(layers), rotation=40, ha="right", rotation_mode="anchor", fontsize=TICK)
    axes.set_ylim(0, MAX_BITS + 1)
    axes.set_yticks(range(0, MAX_BITS + 1, 2))
    axes.tick_params(axis="y", labelsize=TICK)
    axes.set_ylabel("bits", fontsize=LABEL)
    axes.set_title(title, fontsize=TITLE, wrap=True)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=TICK)
    return figure


def named_layers(layers: Sequence[LayerSpec]) -> tuple[list[int], list[str]]:
    """Returns places and names of the layers that an axis names: all, or every second, third, ... one."""
    places = list(range(0, len(layers), -(-len(layers) // MOST_NAMES)))
    names = [layers[place].name for place in places]
    return places, [
        name if len(name) <= LONGEST_NAME else f"\N{HORIZONTAL ELLIPSIS}{name[1 - LONGEST_NAME :]}" for name in names
    ]


def figure_pixels(figure: Figure) -> np.ndarray:
    """Renders a figure with an Agg canvas to pixels, uint8 (height, width, 3)."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
