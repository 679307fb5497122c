"""The figure of the first page: ``python docs/figure.py`` draws it anew from the shipped digits table."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot

from quantenv.evaluation.table.optimum import optimum
from quantenv.evaluation.table.shipped import get_table
from quantenv.hardware import compile_costs, load_device, parse_budgets

matplotlib.use("Agg")


def draw(path: Path) -> None:
    """Draws accuracy against size on the digits table: the best allocation and the best uniform one at every size."""
    table = get_table("digits_table")
    costs = compile_costs(table.layers, table.activations, load_device("generic"))
    ratios = np.linspace(0.25, 1.0, 76)
    found = [optimum(table, parse_budgets("size", float(ratio), costs), costs) for ratio in ratios]
    best = [100 * each.best.evaluation.accuracy for each in found]
    uniform = [100 * each.uniform.evaluation.accuracy if each.uniform else np.nan for each in found]
    with matplotlib.rc_context({"svg.hashsalt": "quantenv", "figure.figsize": (6.4, 3.4)}):
        figure, axes = pyplot.subplots()
        axes.step(ratios, best, where="post", label="best allocation of 65,536")
        axes.step(ratios, uniform, where="post", label="best uniform bits")
        axes.set(xlabel="size budget, relative to 8 bits", ylabel="accuracy, search split (%)", ylim=(60, 100))
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).parent / "_static" / "uniform_and_best.svg")
