"""Fronts and their area against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.runs.pareto_front import front, hypervolume, table_points
from quantenv.envs.environment import QuantizationEnv
from tests.synthetic_table import synthetic_table

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20)


@given(POINTS)
def test_no_point_beats_one_of_the_front_and_one_of_it_matches_every_other(points):
    costs, accuracies = np.array(points, dtype=float).T
    chosen = front(costs, accuracies)
    on_front = {points[index] for index in chosen}
    dominated = {(c, a) for c, a in points if any((x <= c and y >= a) and (x, y) != (c, a) for x, y in points)}
    assert on_front == {*points} - dominated
    assert len(chosen) == len(on_front)
    assert sorted(chosen, key=lambda index: costs[index]) == chosen.tolist()


@given(POINTS, st.integers(1, 10), st.integers(0, 5))
@settings(max_examples=60)
def test_the_area_is_the_unit_squares_that_points_dominate(points, high, low):
    squares = sum(
        any(cost <= x and accuracy >= y + 1 for cost, accuracy in points)
        for x, y in itertools.product(range(high), range(low, 10))
    )
    costs, accuracies = np.array(points, dtype=float).T
    assert hypervolume(costs, accuracies, high, low) == pytest.approx(squares)


def test_equal_points_are_told_apart_by_loss():
    assert front(np.array([1.0, 1.0, 2.0]), np.array([0.5, 0.5, 0.5]), np.array([0.3, 0.2, 0.1])).tolist() == [1]


def test_a_tables_front_is_what_every_budget_allows():
    table = synthetic_table(4, samples=50)
    env = QuantizationEnv(table, budget=1.0)
    costs, accuracies = table_points(table, env.tables["size"], env.allowed)
    rows = [table.allocation(row) for row in range(table.rows)]
    sizes = [env.tables["size"].cost(row.weight_bits, row.activation_bits) for row in rows]
    for budget in np.linspace(min(sizes), max(sizes), 40):
        best = max(table.evaluation(row).accuracy for row in range(table.rows) if sizes[row] <= budget * (1 + 1e-12))
        assert accuracies[costs <= budget * (1 + 1e-12)].max() == best


def test_a_tables_front_keeps_to_what_is_allowed():
    table = synthetic_table(3)
    env = QuantizationEnv(table, budget=1.0, pinned={"layer0": 8})
    costs, _ = table_points(table, env.tables["size"], env.allowed)
    cheapest = env.tables["size"].values[0, 7, 7] + env.tables["size"].values[1:, 1, 7].sum()
    assert costs[0] == pytest.approx(cheapest)
