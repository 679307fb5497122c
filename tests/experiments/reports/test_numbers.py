"""Every figure holds the numbers of the folders: compared with what follows from them without the report's code."""

import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from scipy.stats import spearmanr

from quantenv.hardware import compile_costs, load_device
from tests.experiments.leaderboard.conftest import TABLE

SIZES = compile_costs(TABLE.layers, TABLE.activations, load_device("generic"))["size"]
SAMPLES = TABLE.reference["search"].samples


def cost(bits):
    return sum(SIZES.values[layer, weight - 1, 7] for layer, weight in enumerate(bits))


ROWS = [
    (cost(TABLE.allocation(row).weight_bits), int(TABLE.correct["search"][row]), float(TABLE.loss["search"][row]), row)
    for row in range(TABLE.rows)
]


@pytest.fixture(scope="module")
def evaluations(benchmark_folder):
    return parquet.read_table(benchmark_folder / "evaluations.parquet").to_pylist()


@pytest.fixture(scope="module")
def episodes(runs):
    return [[json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()] for run in runs]


def best_bits(evaluations, agent, budget):
    """Weight bits of the best feasible allocation of each seed."""
    best = {}
    for row in evaluations:
        if (row["agent"], row["budget"]) == (agent, budget) and row["feasible"]:
            best.setdefault(row["seed"], []).append((-row["correct"], row["loss"], row["evaluation"], row["bits"]))
    return np.array([[int(bits) for bits in min(rows)[3].split("/")[0]] for rows in best.values()])


def optimum(budget):
    limit = budget * SIZES.reference * (1 + 1e-9)
    return min((-correct, loss, row) for size, correct, loss, row in ROWS if size <= limit)


def unbeaten(points):
    """Points (cost, correct) that no other beats, by looking at all pairs; sorted, each once."""
    return sorted(
        {
            (size, correct)
            for size, correct in points
            if not any((s <= size and c >= correct) and (s, c) != (size, correct) for s, c in points)
        }
    )


def level_lines(figure):
    return [shape["y0"] for shape in figure["layout"]["shapes"] if shape["y0"] == shape["y1"]]


def test_every_figure_is_there_and_a_picture_of_each_lies_beside_the_page(report):
    kinds = [
        "pareto",
        *(2 * ["anytime", "bits-weights", "weights-against-sensitivity", "weights-against-size", "pattern"]),
    ]
    found = [next(kind for kind in dict.fromkeys(kinds) if key.startswith(kind)) for key in report.figures]
    assert found == kinds
    places = [attributes["id"] for tag, attributes in report.tags if attributes.get("class") == "figure"]
    assert places == list(report.figures)
    for key in report.figures:
        with Image.open(report.path.with_name(f"mine-{key}.png")) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 5  # something is drawn


def test_the_true_front_is_that_of_all_rows(report):
    trace = report.trace("pareto", "true Pareto front (table)")
    expected = unbeaten([(size, correct) for size, correct, _, _ in ROWS])
    first = {}
    for size, correct in expected:
        first.setdefault(correct, size)
    np.testing.assert_allclose(np.multiply(trace["x"], unit(report)), list(first.values()))
    np.testing.assert_allclose(trace["y"], [100 * correct / SAMPLES for correct in first])


def unit(report):
    title = report.figure("pareto")["layout"]["xaxis"]["title"]["text"]
    return {"size (B)": 1, "size (KiB)": 1024}[title]


def test_uniform_allocations_are_the_tables(report):
    trace = report.trace("pareto", "uniform allocations")
    for bits, x, y in zip(TABLE.bits, trace["x"], trace["y"], strict=True):
        (row,) = [row for *_, row in ROWS if set(TABLE.allocation(row).weight_bits) == {bits}]
        assert x * unit(report) == pytest.approx(ROWS[row][0])
        assert y == pytest.approx(100 * ROWS[row][1] / SAMPLES)


@pytest.mark.parametrize("agent", ["random", "reinforce"])
def test_found_allocations_are_the_unbeaten_ones_of_all_budgets(report, evaluations, agent):
    trace = report.trace("pareto", f"{agent} · default")
    points = {(row["cost"], row["correct"]) for row in evaluations if row["agent"] == agent and row["feasible"]}
    first = {}
    for size, correct in unbeaten(points):
        first.setdefault(correct, size)
    np.testing.assert_allclose(np.multiply(trace["x"], unit(report)), list(first.values()))
    np.testing.assert_allclose(trace["y"], [100 * correct / SAMPLES for correct in first])


def test_the_proxys_points_are_rows_of_the_table_and_best_by_its_sum(report):
    trace = report.trace("pareto", "ILP: additive proxy (loss)")
    eight = ROWS[-1][2]
    for x, y, note in zip(trace["x"], trace["y"], trace["text"], strict=True):
        bits = [int(text) for text in note.removeprefix("weights ").split()]
        row = next(row for *_, row in ROWS if list(TABLE.allocation(row).weight_bits) == bits)
        assert (x * unit(report), y) == pytest.approx((ROWS[row][0], 100 * ROWS[row][1] / SAMPLES))

        def proxy(row):  # summed increases of the loss of one group alone
            options = [row // stride % len(TABLE.bits) for stride in TABLE.strides]
            return sum(
                ROWS[TABLE.rows - 1 - (len(TABLE.bits) - 1 - option) * stride][2] - eight
                for option, stride in zip(options, TABLE.strides, strict=True)
            )

        cheaper = [other for size, _, _, other in ROWS if size <= ROWS[row][0] * (1 + 1e-9)]
        assert proxy(row) == pytest.approx(min(map(proxy, cheaper)), abs=1e-9)


def test_curves_of_a_benchmark_are_those_of_its_file(report, benchmark_folder):
    curves = json.loads((benchmark_folder / "curves.json").read_text())
    for line in curves["curves"]:
        traces = [
            t for t in find(report, "anytime", line["budget"])["data"] if t["name"] == f"{line['agent']} · default"
        ]
        assert [trace["x"] for trace in traces] == 3 * [curves["evaluations"]]
        for trace, part in zip(traces, ("high", "low", "value"), strict=True):
            assert trace["y"] == [None if value is None else 100 * value for value in line["accuracy"][part]]


def find(report, kind, budget):
    """The figure of a kind in a case, by the title that its place on the page has."""
    keys = [
        attributes["id"]
        for tag, attributes in report.tags
        if attributes.get("class") == "figure"
        and attributes["id"].startswith(kind)
        and attributes["aria-label"].endswith(f"size {budget}")
    ]
    (key,) = keys
    return json.loads(report.figures[key])


def named(figure, name):
    (trace,) = [trace for trace in figure["data"] if trace["name"].split(",")[0] == name]
    return trace


def test_curves_of_runs_are_those_of_their_episodes(report, episodes):
    figure = find(report, "anytime", 0.5)
    for seed, lines in enumerate(episodes):
        (trace,) = [trace for trace in figure["data"] if trace["name"] == f"random · runs, seed {seed}"]
        best, expected = None, []
        for line in lines:
            if line["feasible"]:
                best = max(best or 0, 100 * line["correct"] / line["samples"])
            expected.append(best)
        at = np.searchsorted(trace["x"], np.arange(1, len(lines) + 1), side="right") - 1
        assert [trace["y"][index] for index in at] == expected


@pytest.mark.parametrize("budget", [0.5, 0.7])
def test_level_lines_are_the_optimum_and_the_best_uniform_allocation(report, budget):
    figure = find(report, "anytime", budget)
    limit = budget * SIZES.reference * (1 + 1e-9)
    uniform = max(
        correct for size, correct, _, row in ROWS if len(set(TABLE.allocation(row).weight_bits)) == 1 and size <= limit
    )
    assert level_lines(figure) == pytest.approx([100 * -optimum(budget)[0] / SAMPLES, 100 * uniform / SAMPLES])


@pytest.mark.parametrize("budget", [0.5, 0.7])
def test_bits_of_layers_are_means_over_each_seeds_best(report, evaluations, budget):
    (heat,) = find(report, "bits-weights", budget)["data"]
    rows = dict(zip(heat["y"], heat["z"], strict=True))
    suffix = " · default"
    assert rows["optimum"] == list(TABLE.allocation(optimum(budget)[2]).weight_bits)
    for agent in ("random", "reinforce"):
        np.testing.assert_allclose(rows[agent + suffix], best_bits(evaluations, agent, budget).mean(axis=0))
    assert [name.split()[1] for name in heat["x"]] == [layer.name for layer in TABLE.layers]


@pytest.mark.parametrize("budget", [0.5, 0.7])
def test_bits_stand_against_the_share_of_the_cost_and_the_sensitivity(report, evaluations, budget):
    size = find(report, "weights-against-size", budget)
    params = np.array([layer.params for layer in TABLE.layers])
    trace = named(size, "random · default")
    y = best_bits(evaluations, "random", budget).mean(axis=0)
    np.testing.assert_allclose(trace["customdata"], 100 * params / params.sum())
    np.testing.assert_allclose(trace["y"], y)
    correlation = "undefined" if len(set(y)) == 1 else f"{spearmanr(trace['customdata'], y).statistic:+.2f}"
    assert trace["name"].endswith(correlation)
    harm = find(report, "weights-against-sensitivity", budget)
    expected = np.zeros(len(params))
    for members, stride in zip(TABLE.members, TABLE.strides, strict=True):
        alone = TABLE.rows - 1 - (len(TABLE.bits) - 1) * stride  # this group at 2 bits, the others at 8
        expected[list(members)] = (ROWS[alone][2] - ROWS[-1][2]) / len(members)
    np.testing.assert_allclose(named(harm, "random · default")["customdata"], expected)
    assert "2 bits" in harm["layout"]["xaxis"]["title"]["text"]


def test_patterns_are_means_by_kind_beside_the_even_bits(report, evaluations):
    figure = find(report, "pattern", 0.5)
    bits = best_bits(evaluations, "random", 0.5)
    trace = named(figure, "random · default")
    means = dict(zip(trace["x"], trace["y"], strict=True))
    assert means["first"] == pytest.approx(bits[:, 0].mean())
    assert means["last"] == pytest.approx(bits[:, -1].mean())
    between = [layer.kernel_size == (1, 1) for layer in TABLE.layers[1:-1]]
    for kind, chosen in (("pointwise", between), ("middle", [not each for each in between])):
        if any(chosen):
            assert means[kind] == pytest.approx(bits[:, 1:-1][:, chosen].mean())
    assert level_lines(figure) == pytest.approx([8 * 0.5])  # size is proportional to bits
    assert f"{bits.mean():.2f} ({bits.mean() - 4:+.2f})" in report.text


def test_the_leaderboard_is_the_benchmarks(report, benchmark_folder):
    lines = (benchmark_folder / "leaderboard.md").read_text().splitlines()
    for line in lines:
        if line.startswith("|") and "---" not in line:
            assert " ".join(" ".join(line.replace("|", " ").split()).split()) in report.text
