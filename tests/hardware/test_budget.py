import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantenv.core.errors import InfeasibleBudgetError, QuantenvError
from quantenv.hardware import Budget, CostTable, check_feasible, load_device, parse_budgets
from quantenv.hardware.budget import feasible_interval
from tests.synthetic import chain_costs, synthetic_layers

LAYERS = synthetic_layers()
TABLES = chain_costs(LAYERS, load_device("generic"))
SIZE, BOPS = TABLES["size"].reference, TABLES["bops"].reference
EVERYTHING = np.ones((len(LAYERS), 8, 8), dtype=bool)


@pytest.mark.parametrize(
    ("metric", "budget", "limits"),
    [
        ("size", 0.4, {"size": 0.4 * SIZE}),
        ("size", 1, {"size": SIZE}),
        ("size", np.float32(0.5), {"size": 0.5 * SIZE}),
        ("size", "0.4", {"size": 0.4 * SIZE}),
        ("size", "18KiB", {"size": 18 * 1024}),
        ("latency", "3ms", {"latency": 3e-3}),
        ("size", [0.4], {"size": 0.4 * SIZE}),
        (["size"], 0.4, {"size": 0.4 * SIZE}),
        (("size", "bops"), (0.4, "1.2GBOPs"), {"size": 0.4 * SIZE, "bops": 1.2e9}),
        ("bops,size", "0.4, 0.5", {"bops": 0.4 * BOPS, "size": 0.5 * SIZE}),
        (["size", "bops"], "0.4,0.5", {"size": 0.4 * SIZE, "bops": 0.5 * BOPS}),
        ("ignored", {"energy": "2mJ", "size": 0.4}, {"energy": 2e-3, "size": 0.4 * SIZE}),
        ("size", "size=0.4,latency=3ms", {"size": 0.4 * SIZE, "latency": 3e-3}),
        ("size", " bops = 0.5 ", {"bops": 0.5 * BOPS}),
    ],
)
def test_every_way_to_write_budgets(metric, budget, limits):
    budgets = parse_budgets(metric, budget, TABLES)
    assert [b.metric for b in budgets] == list(limits)
    assert [b.limit for b in budgets] == pytest.approx(list(limits.values()), rel=1e-12)


@pytest.mark.parametrize(
    ("metric", "budget", "message"),
    [
        ("size", 0, r"lies in \(0, 1\]"),
        ("size", -0.4, r"lies in \(0, 1\]"),
        ("size", 1.01, r"lies in \(0, 1\]; an absolute limit needs a unit, such as '1.56 KiB'"),
        ("size", float("nan"), r"lies in \(0, 1\]"),
        ("size", float("inf"), r"lies in \(0, 1\]"),
        ("size", "40", r"lies in \(0, 1\]"),
        ("size", "-0.1", r"lies in \(0, 1\]"),
        ("size", "-3KiB", "positive"),
        ("size", "0B", "positive"),
        ("size", "1e999B", "positive, finite"),
        ("size", "nan", "not a number"),
        ("size", "3ms", "unit of latency"),
        ("size", True, "is True; expected a ratio"),
        ("size", None, "is None; expected a ratio"),
        ("sise", 0.4, "Unknown metric 'sise'. Did you mean 'size'"),
        ("size", {"latncy": 0.4}, "Did you mean 'latency'"),
        ("size", "latncy=0.4", "Did you mean 'latency'"),
        (5, 0.4, "Unknown metric '5'"),
        ("size,bops", 0.4, r"2 metric\(s\) \(size, bops\) but 1 budget"),
        ("size", (0.4, 0.5), r"1 metric\(s\) \(size\) but 2 budget"),
        ("size,size", "0.4,0.5", "more than one budget"),
        ("size", "size=0.4,size=0.5", "more than one budget"),
        ("size", "size=0.4,0.5", "not for '0.5'"),
        ("size", "size=", "not a number"),
        ("size", {}, "No budget"),
        ([], [], "No budget"),
    ],
)
def test_malformed_budgets_are_refused(metric, budget, message):
    with pytest.raises(QuantenvError, match=message):
        parse_budgets(metric, budget, TABLES)


def test_a_metric_the_device_does_not_define_is_refused():
    tables = chain_costs(LAYERS, load_device("int8_cpu"))
    with pytest.raises(QuantenvError, match="does not define energy; it defines size, bops, latency"):
        parse_budgets("energy", 0.5, tables)


def test_a_ratio_of_nothing_is_refused():
    with pytest.raises(QuantenvError, match="at 8 bits is 0"):
        parse_budgets("size", 0.5, {"size": CostTable("size", np.zeros((1, 8, 8)))})


@pytest.mark.parametrize(("metric", "limit"), [("weight", 1.0), ("size", 0.0), ("size", -1.0), ("size", float("nan"))])
def test_budgets_are_checked_without_parsing_too(metric, limit):
    with pytest.raises(QuantenvError):
        Budget(metric, limit)


@st.composite
def small_nets(draw):
    """Random tables, not monotone, of at most 4 layers with at most 4 options each."""
    count = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    allowed = np.zeros((count, 64), dtype=bool)
    for row in allowed:
        row[rng.choice(64, draw(st.integers(1, 4)), replace=False)] = True
    return CostTable("size", rng.integers(1, 50, (count, 8, 8))), allowed.reshape(count, 8, 8)


def every_cost(table, allowed):
    options = [table.values[layer][mask] for layer, mask in enumerate(allowed)]
    return [sum(costs) for costs in itertools.product(*options)]


@given(small_nets(), st.integers(-2, 2))
def test_feasible_exactly_when_brute_force_finds_an_allocation(net, beyond):
    table, allowed = net
    costs = every_cost(table, allowed)
    assert feasible_interval(table, allowed) == (min(costs), max(costs))
    for edge in (min(costs), max(costs)):
        if edge + beyond <= 0:
            continue
        budget = Budget("size", edge + beyond)
        if any(cost <= budget.limit for cost in costs):
            check_feasible([budget], {"size": table}, allowed)
        else:
            with pytest.raises(InfeasibleBudgetError):
                check_feasible([budget], {"size": table}, allowed)


@given(small_nets(), st.integers(0, 10_000), st.floats(0.2, 1.5), st.floats(0.2, 1.5))
def test_several_budgets_pass_only_if_brute_force_meets_them_together(net, seed, first, second):
    size, allowed = net
    other = CostTable("bops", np.random.default_rng(seed).integers(1, 4, size.values.shape))
    pairs = list(zip(every_cost(size, allowed), every_cost(other, allowed), strict=True))
    budgets = [Budget("size", first * np.mean(pairs, axis=0)[0]), Budget("bops", second * np.mean(pairs, axis=0)[1])]
    together = any(s <= budgets[0].limit and b <= budgets[1].limit for s, b in pairs)
    refusal = ""
    try:
        check_feasible(budgets, {"size": size, "bops": other}, allowed)
    except InfeasibleBudgetError as error:
        refusal = str(error)
    if together:
        assert not refusal or "disagree" in refusal
    else:
        assert refusal


@given(
    st.integers(1, 8), st.integers(0, 1000), st.sampled_from([load_device("generic"), load_device("bitserial_fpga")])
)
def test_formula_metrics_never_disagree(count, seed, device):
    tables = chain_costs(synthetic_layers(count, seed), device)
    rng = np.random.default_rng(seed)
    weight, activation = rng.random((2, count, 8)) < 0.4
    weight[:, 7] = activation[:, 7] = True
    allowed = weight[:, :, None] & activation[:, None, :]
    budgets = [Budget(metric, feasible_interval(table, allowed)[0]) for metric, table in tables.items()]
    check_feasible(budgets, tables, allowed)


def test_metrics_that_disagree_are_refused_though_each_budget_can_be_met():
    values = np.full((2, 8, 8), 9.0)
    values[:, 1, 7], values[:, 3, 7] = 1, 2
    size = CostTable("size", values)
    values[1, 1, 7], values[1, 3, 7] = 2, 1
    latency = CostTable("latency", values)
    tables, budgets = {"size": size, "latency": latency}, [Budget("size", 2.5), Budget("latency", 2.5)]
    allowed = np.ones((2, 8, 8), dtype=bool)
    for budget in budgets:
        check_feasible([budget], tables, allowed)
    with pytest.raises(InfeasibleBudgetError, match=r"size, latency disagree about .* layer\(s\) 1 "):
        check_feasible(budgets, tables, allowed)


def test_an_infeasible_budget_prints_the_interval_and_the_printed_minimum_is_feasible():
    allowed = np.zeros_like(EVERYTHING)
    allowed[:, 2:8, 7] = True  # weights of 3-8 bits
    with pytest.raises(InfeasibleBudgetError) as error:
        check_feasible(parse_budgets("size", "100B", TABLES), TABLES, allowed)
    text = str(error.value)
    assert "size <= 100 B" in text
    assert f"{SIZE * 3 / 8:.6g} B, 0.3750 of the 8-bit cost" in text
    assert f"{SIZE:.6g} B, 1.0000 of the 8-bit cost" in text
    assert "KiB" in text
    check_feasible(parse_budgets("size", 0.375, TABLES), TABLES, allowed)
    for metric in TABLES:
        with pytest.raises(InfeasibleBudgetError) as error:
            check_feasible([Budget(metric, 1e-15)], TABLES, allowed)
        least = re.search(r"from .*?([\d.]+) of the 8-bit cost", str(error.value))
        check_feasible(parse_budgets(metric, least[1], TABLES), TABLES, allowed)


def test_the_8_bit_network_meets_a_ratio_of_one():
    allowed = np.zeros_like(EVERYTHING)
    allowed[:, 7, 7] = True
    check_feasible(parse_budgets(list(TABLES), [1.0] * len(TABLES), TABLES), TABLES, allowed)


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (EVERYTHING[:-1], "shape"),
        (EVERYTHING.astype(int), "int64"),
        (np.zeros_like(EVERYTHING), r"Layer\(s\) 0, 1, 2, 3, 4, 5 have no allowed bits"),
    ],
)
def test_allowed_options_that_do_not_fit_are_refused(allowed, message):
    with pytest.raises(QuantenvError, match=message):
        check_feasible(parse_budgets("size", 0.5, TABLES), TABLES, allowed)
