"""Figures about accuracy, as data: Pareto fronts and anytime curves."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.leaderboard.results import NOTHING
from experiments.reports.drawing import GREY, Chart, Look, Series
from experiments.reports.groups import UNIFORM, Group, shown_at_first
from experiments.reports.known import CaseKnown, Known
from experiments.reports.searches import Benchmark, Case, Point, Search, Setting, merge_fronts
from experiments.runs.final_table import HEADINGS
from quantenv.core.errors import QuantenvError
from quantenv.core.files import content_hash
from quantenv.hardware.quantities import BASE_UNITS, PRINTED_UNITS

Looks = Mapping[str, Look]


def key_of(kind: str, title: str, setting: Setting) -> str:
    """Returns a figure's key: readable, of harmless characters, and different for what differs."""
    readable = re.sub(r"[^a-z0-9]+", "-", f"{kind}-{title}".lower()).strip("-")[:60].strip("-")
    return f"{readable}-{content_hash([kind, title, repr(setting)])[:4]}"


def pareto(setting: Setting, metric: str, groups: Mapping[Case, Sequence[Group]], known: Known, looks: Looks) -> Chart:
    """Draws accuracy against one cost: what every agent found, uniform allocations, the proxy's curve, the true front.

    Args:
        setting: The setting.
        metric: The cost.
        groups: Groups of the setting's cases.
        known: What is known of the setting.
        looks: Looks of labels.
    """
    samples = next(iter(groups.values()))[0].searches[0].samples
    by_label: dict[str, list[Group]] = {}
    for found in groups.values():
        for each in found:
            by_label.setdefault(each.label, []).append(each)
    shown = {label for found in groups.values() for label in shown_at_first(found)}
    by_label = {label: members for label, members in by_label.items() if members[0].agent != UNIFORM}
    points = {
        label: merge_fronts([search.fronts[metric] for each in members for search in each.searches], metric)
        for label, members in by_label.items()
    }
    costs = [point.costs[metric] for each in (*points.values(), known.uniform) for point in each]
    scale, unit = _scale(metric, max(costs, default=1.0))

    def line(name: str, on_it: Sequence[Point], shape: str, look: Look, shown: bool = True) -> Series:
        return Series(
            name,
            [point.costs[metric] / scale for point in on_it],
            [100 * point.correct / samples for point in on_it],
            shape,
            look,
            notes=[_bits_note(point) for point in on_it],
            shown=shown,
        )

    series = []
    if metric in known.front:
        true_costs, correct = known.front[metric]
        x, y = (true_costs / scale).tolist(), (100 * correct / samples).tolist()
        series.append(Series("true Pareto front (table)", x, y, "steps"))
    if metric in known.proxy:
        name = f"ILP: additive proxy ({known.sensitivity.kind})" if known.sensitivity else "ILP: additive proxy"
        series.append(line(name, known.proxy[metric], "marked", Look(GREY, "x", "dash")))
    if known.uniform:
        ordered = sorted(known.uniform, key=lambda point: point.costs[metric])
        series.append(line("uniform allocations", ordered, "points", Look(symbol="square")))
    for label, front in points.items():
        if front:
            series.append(line(label, front, "points", looks[label], label in shown))
    limits = sorted(
        {
            (case_known.limits[metric] / scale, f"budget {case.budgets[setting.metrics.index(metric)]}")
            for case, case_known in known.cases.items()
        }
    )
    best = [max((100 * each.best_accuracy for each in found), default=0.0) for found in groups.values()]
    spread = max(best) - min(best)
    return Chart(
        key=key_of("pareto", f"{setting.name}-{metric}", setting),
        title=f"Accuracy against {HEADINGS[metric]}: {setting.name}{setting.unusual}",
        caption="Of each agent: the feasible allocations of all its searches that none of its others beats in both "
        "accuracy and cost. Accuracy is of the search split, on which they were chosen. Poor allocations lie below the "
        "first view: a double click shows all.",
        x_title=f"{HEADINGS[metric]} ({unit})",
        y_title="search accuracy (%)",
        series=series,
        y_range=_seen(
            [max(0.0, min(best) - max(spread, 1.0))], [y for each in series for y in each.y if y is not None]
        ),
        vertical=limits,
    )


def anytime(
    case: Case,
    groups: Sequence[Group],
    case_known: CaseKnown | None,
    benchmarks: Sequence[Benchmark],
    looks: Looks,
) -> Chart:
    """Draws the best feasible accuracy so far: interquartile means with intervals of benchmarks, and single runs."""
    shown, series, judged = shown_at_first(groups), [], []
    for each in groups:
        look, is_shown, drawn = looks[each.label], each.label in shown, []
        if each.searches[0].benchmark is not None:
            curve = _curve_of(each, case, benchmarks)
            x, y = curve["evaluations"], curve["value"]
            low, high = curve["low"], curve["high"]
            drawn.append(Series(each.label, x, y, "steps", look, low=low, high=high, shown=is_shown))
        for search in each.searches:
            if search.benchmark is None:
                drawn.append(_run_curve(f"{each.label}, seed {search.seed}", search, look, is_shown))
        series += drawn
        judged += drawn if is_shown and each.agent != UNIFORM else []
    samples, level = groups[0].searches[0].samples, []
    if case_known is not None:
        if case_known.optimum is not None:
            level.append((100 * case_known.optimum.correct / samples, "optimum"))
        if case_known.uniform is not None:
            level.append((100 * case_known.uniform.correct / samples, "best uniform"))
    several = any(each.searches[0].benchmark is not None for each in groups)
    return Chart(
        key=key_of("anytime", case.title, case.setting),
        title=f"Best feasible accuracy so far: {case.title}",
        caption=(
            "Interquartile mean over the searches of each agent in a benchmark, with its 95% stratified bootstrap "
            "interval as a band. "
            if several
            else ""
        )
        + ("" if several and all(each.searches[0].benchmark for each in groups) else "Runs are drawn one by one. ")
        + "Counted evaluations; what an agent measured besides (sensitivities) is not among them.",
        x_title="evaluations (logarithmic)",
        y_title="search accuracy (%)",
        series=series,
        x_log=True,
        y_range=_seen(_late(judged), [y for y, _ in level]),
        horizontal=level,
    )


def _curve_of(group: Group, case: Case, benchmarks: Sequence[Benchmark]) -> dict[str, list]:
    """Finds a group's curve in the file of its benchmark."""
    name = group.searches[0].benchmark
    benchmark = next(each for each in benchmarks if each.name == name)
    agent = group.agent.partition(" (")[0]
    try:
        for line in benchmark.curves["curves"]:
            if line["agent"] == agent and benchmark.cases[line["task"], line["budget"]] == case:
                parts = {part: _percent(line["accuracy"][part]) for part in ("value", "low", "high")}
                return {"evaluations": [int(at) for at in benchmark.curves["evaluations"]], **parts}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(benchmark) from error
    raise _damaged(benchmark)


def _run_curve(name: str, search: Search, look: Look, shown: bool) -> Series:
    """Returns the best feasible accuracy so far of one run, where it changes."""
    found = search.curve
    at = np.unique([0, *(np.flatnonzero(np.diff(found)) + 1), len(found) - 1])
    y = [None if found[index] == NOTHING else 100 * int(found[index]) / search.samples for index in at]
    return Series(name, (at + 1).tolist(), y, "steps", look, notes=[search.folder] * len(y), shown=shown)


def _late(series: Sequence[Series]) -> list[float]:
    """Returns what curves are after a twentieth of their evaluations: the rest is not what one looks for."""
    late: list[float] = []
    for each in series:
        end = max(float(x) for x in each.x)
        late += [y for x, y in zip(each.x, each.y, strict=True) if y is not None and float(x) >= end / 20]
    return late


def _damaged(benchmark: Benchmark) -> QuantenvError:
    return QuantenvError(
        f"{benchmark.folder}/curves.json is damaged or of other searches: run the benchmark again, which makes it anew."
    )


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


def _scale(metric: str, largest: float) -> tuple[float, str]:
    """Returns the printed unit that suits a metric's largest value: its SI value and name."""
    fitting = [(value, unit) for unit, value in PRINTED_UNITS[metric].items() if value <= largest]
    return fitting[-1] if fitting else (1.0, BASE_UNITS[metric])


def _seen(found: Sequence[float], references: Sequence[float]) -> tuple[float, float] | None:
    """Returns the part of an accuracy axis where there is something to see: from the found down a little."""
    if not found:
        return None
    top = max([*found, *references])
    low = min(found)
    margin = max(0.05 * (top - low), 0.1)
    return low - margin, min(top + margin, 100.5)


def _bits_note(point: Point) -> str:
    weights, activations = zip(*point.bits, strict=True)
    note = "weights " + " ".join(map(str, weights))
    return note if set(activations) == {8} else f"{note}; activations {' '.join(map(str, activations))}"
