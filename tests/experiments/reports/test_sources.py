"""What folders are read as, and which points nothing beats."""

import dataclasses

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments.reports.patterns import layer_kinds
from experiments.reports.searches import undominated
from experiments.reports.sources import read_folders
from tests.resealing import change_config
from tests.synthetic import synthetic_layers


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20))
def test_undominated_points(points):
    costs, correct = np.array([x for x, _ in points], dtype=float), np.array([y for _, y in points], dtype=int)
    found = [points[index] for index in undominated(costs, correct)]
    best = {
        point for point in points if not any(x <= point[0] and y >= point[1] and (x, y) != point for x, y in points)
    }
    assert found == sorted(best)


@pytest.mark.parametrize(
    ("metric", "budget", "metrics", "budgets"),
    [
        ("size", "0.5", ("size",), ("0.5",)),
        ("size", '"0.5"', ("size",), ("0.5",)),
        ("size", '"size=0.5, latency=3ms"', ("size", "latency"), ("0.5", "3ms")),
        ("size", "{size: 0.5}", ("size",), ("0.5",)),
        ('"size,bops"', "[0.5, 1MBOPs]", ("size", "bops"), ("0.5", "1MBOPs")),
        ("[size, bops]", '"0.5,0.6"', ("size", "bops"), ("0.5", "0.6")),
    ],
)
def test_budgets_in_every_form(run_copy, metric, budget, metrics, budgets):
    change_config(run_copy / "config.yaml", metric=yaml.safe_load(metric), budget=yaml.safe_load(budget))
    (search,) = read_folders([str(run_copy)]).searches
    assert (search.case.setting.metrics, search.case.budgets) == (metrics, budgets)
    assert dict(search.case.train_options.budget) == dict(zip(metrics, budgets, strict=True))


def test_layers_are_of_one_kind_each():
    layers = [
        dataclasses.replace(layer, kind=kind, kernel_size=(size, size))
        for layer, kind, size in zip(
            synthetic_layers(7),
            ("conv", "depthwise", "conv", "conv", "linear", "depthwise", "linear"),
            (3, 3, 1, 3, 1, 1, 1),
            strict=True,
        )
    ]
    expected = ["first", "depthwise", "pointwise", "middle", "middle", "depthwise", "last"]
    assert layer_kinds(layers) == expected
