"""Figures about layers, as data: their bits, what the bits go with, and the pattern over kinds of layers."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from experiments.reports.charts import key_of
from experiments.reports.drawing import Chart, HeatMap, Look, Series, beside_each_other
from experiments.reports.groups import UNIFORM, Group, shown_at_first
from experiments.reports.known import CaseKnown, Known, probe_bits, sensitivity_text
from experiments.reports.patterns import KINDS, Pattern, mean_bits
from experiments.reports.searches import Case
from experiments.runs.final_table import HEADINGS

Looks = Mapping[str, Look]
RHO = "\N{GREEK SMALL LETTER RHO}"
WHAT = ("weights", "activations")


def bits_by_layer(
    case: Case, groups: Sequence[Group], known: Known, case_known: CaseKnown | None, column: int
) -> HeatMap | None:
    """Draws the mean bits of each layer in the best allocations of each agent; None if nothing feasible was found.

    Args:
        case: The case.
        groups: Its groups, the best first.
        known: What is known of the setting.
        case_known: What is known of the case.
        column: 0 for weights, 1 for activations.
    """
    what = WHAT[column]
    rows = {} if case_known is None or case_known.optimum is None else {"optimum": [case_known.optimum]}
    rows |= {each.label: [search.best for search in each.searches if search.best] for each in groups}
    values = {label: mean_bits(points, column) for label, points in rows.items() if points}
    if not values:
        return None
    count = len(next(iter(values.values())))
    names = [layer.name for layer in known.layers] if known.layers else [f"layer {index}" for index in range(count)]
    return HeatMap(
        key=key_of(f"bits-{what}", case.title, case.setting),
        title=f"Bits of each layer, {what}: {case.title}",
        caption="Mean over the best feasible allocation of each search, agents by accuracy from the top. More bits are "
        "darker.",
        x_title="layer, in execution order",
        columns=names,
        rows=list(values),
        values=[bits.tolist() for bits in values.values()],
        unit="bits",
        limits=(1.0, 8.0),
    )


def bits_against(
    case: Case,
    groups: Sequence[Group],
    known: Known,
    case_known: CaseKnown | None,
    column: int,
    cause: str,
    looks: Looks,
) -> Chart | None:
    """Draws bits of each layer against its sensitivity or its share of the cost; None where that is not known.

    Args:
        case: The case.
        groups: Its groups.
        known: What is known of the setting.
        case_known: What is known of the case.
        column: 0 for weights, 1 for activations.
        cause: ``sensitivity``, or a metric whose share is meant.
        looks: Looks of labels.
    """
    if known.layers is None:
        return None
    what, against = WHAT[column], cause if cause == "sensitivity" else f"share of {HEADINGS[cause]}"
    if cause != "sensitivity":
        x, x_title = 100 * known.shares[cause], f"share of the 8-bit {HEADINGS[cause]} (%)"
    elif known.sensitivity is not None:
        harms = known.sensitivity.activations if column else known.sensitivity.weights
        bits = probe_bits(harms, known.bits)
        if bits is None:
            return None
        x, x_title = harms[:, bits - 1], sensitivity_text(known.sensitivity, bits)
    else:
        return None
    shown, names = shown_at_first(groups), [layer.name for layer in known.layers]
    series = []
    if case_known is not None and case_known.optimum is not None:
        y = mean_bits([case_known.optimum], column)
        name = f"optimum, {_rank_correlation(x, y)}"
        series.append(Series(name, x.tolist(), y.tolist(), look=Look(symbol="square"), notes=names))
    for each in groups:
        points = [search.best for search in each.searches if search.best]
        if not points or each.agent == UNIFORM:
            continue
        y, look = mean_bits(points, column), looks[each.label]
        name = f"{each.label}, {_rank_correlation(x, y)}"
        series.append(Series(name, x.tolist(), y.tolist(), look=look, notes=names, shown=each.label in shown))
    if not series:
        return None
    x_log, y_range = bool((x > 0).all()), (0.5, 8.5)
    expected = "; an additive proxy expects it above 0" if cause == "sensitivity" else ""
    return Chart(
        key=key_of(f"{what}-against-{cause}", case.title, case.setting),
        title=f"Bits against {against}, {what}: {case.title}",
        caption="One point for each layer: mean bits in the best feasible allocation of each search. "
        f"{RHO} is Spearman's rank correlation over the layers{expected}. Markers at one place are drawn beside each "
        "other.",
        x_title=x_title + (", logarithmic" if x_log else ""),
        y_title=f"mean bits of {what}",
        series=beside_each_other(series, x_log, y_range),
        x_log=x_log,
        y_range=y_range,
    )


def pattern_chart(
    case: Case, found: Sequence[Pattern], groups: Sequence[Group], even_bits: float | None, looks: Looks
) -> Chart | None:
    """Draws mean weight bits by kind of layer, beside the bits that the budget buys if all layers get the same."""
    shown, series = shown_at_first(groups), []
    for pattern in found:
        if pattern.what != "weights" or pattern.label == "best uniform":
            continue
        kinds = [kind for kind in KINDS if kind in pattern.means]
        means = [pattern.means[kind] for kind in kinds]
        series.append(
            Series(
                pattern.label,
                list(kinds),
                [float(mean.value) for mean in means],
                low=[_end(mean.low) for mean in means],
                high=[_end(mean.high) for mean in means],
                shown=pattern.label in shown or not pattern.searches,
                look=looks.get(pattern.label, Look(symbol="square")),
            )
        )
    if not series:
        return None
    return Chart(
        key=key_of("pattern", case.title, case.setting),
        title=f"Bits by kind of layer: {case.title}",
        caption="Mean weight bits in the best feasible allocation of each search; bars are 95% bootstrap intervals "
        "over searches, where there are at least three. Level line: what the budget buys if all layers get as many.",
        x_title="kind of layer",
        y_title="mean bits of weights",
        series=series,
        y_range=(0.5, 8.5),
        horizontal=[] if even_bits is None else [(even_bits, f"even: {even_bits:.2f} bits")],
    )


def _end(end: np.ndarray) -> float | None:
    return None if np.isnan(end) else float(end)


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> str:
    if len(set(x.tolist())) < 2 or len(set(y.tolist())) < 2:
        return f"{RHO} undefined"
    return f"{RHO} = {spearmanr(x, y).statistic:+.2f}"
