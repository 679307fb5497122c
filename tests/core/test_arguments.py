import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from quantenv.core.arguments import finite_number, listed, named, one_of, read_options, read_seed, real_number, switch
from quantenv.core.arguments import whole_number as whole
from quantenv.core.errors import QuantenvError, shown, unknown_name

HUGE = 10**4000  # above what a float holds, and below what is printed


@pytest.mark.parametrize(
    "value",
    [3, np.int8(3), np.uint64(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)],
)
def test_whole_numbers_of_many_kinds(value):
    assert type(whole(value, "x", 0, 3)) is int
    assert whole(value, "x", 0, 3) == 3


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.True_,
        3.0,
        np.float64(3),
        math.nan,
        "3",
        b"3",
        None,
        [3],
        np.array([3]),
        torch.tensor([3]),
        3 + 0j,
        Decimal(3),
        Fraction(3),
        -1,
        4,
        HUGE,
        object(),
    ],
)
def test_others_are_no_whole_numbers_in_range(value):
    with pytest.raises(QuantenvError, match=r"^x is .*: expected a whole number from 0 to 3\.$"):
        whole(value, "x", 0, 3)


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), Decimal("0.5"), Fraction(1, 2)]
)
def test_numbers_of_many_kinds(value):
    assert type(finite_number(value, "x", low=0)) is float
    assert finite_number(value, "x", above=0.4) == 0.5


@pytest.mark.parametrize(
    "value", [True, "0.5", None, [0.5], np.array([0.5]), 1j, {}, math.nan, math.inf, -0.1, 10**400]
)
def test_others_are_no_finite_numbers(value):
    with pytest.raises(QuantenvError, match=r"^x is .*: expected a "):
        finite_number(value, "x", low=0)


def test_infinities_are_numbers_where_they_may_be():
    assert real_number(-math.inf, "x") == -math.inf
    assert math.isnan(real_number(np.float32("nan"), "x"))


@pytest.mark.parametrize(
    "values",
    [
        [1, 2],
        (1, 2),
        range(1, 3),
        np.array([1, 2]),
        torch.tensor([1, 2]),
        [np.int64(1), np.array(2)],
        {1: 0, 2: 0}.keys(),
    ],
)
def test_lists_of_many_kinds(values):
    items = listed(values, "x", "numbers")
    assert items == [1, 2]
    assert all(type(item) is int for item in items)


@pytest.mark.parametrize("values", ["12", b"12", 1, None, {1: 2}, {1, 2}, np.array(1), object()])
def test_others_are_no_lists(values):
    with pytest.raises(QuantenvError, match=r"^x is .*: expected a list of numbers\.$"):
        listed(values, "x", "numbers")


def test_names_mappings_and_switches():
    assert one_of("a", "letter", ["a", "b"]) == "a"
    assert named(None, "x", "numbers") == {}
    assert named({"a": 1}, "x", "numbers") == {"a": 1}
    assert switch(np.True_, "x") is True
    for value in ("c", None, 3, ["a"], np.array(["a", "b"]), {"a"}):
        with pytest.raises(QuantenvError, match="Unknown letter"):
            one_of(value, "letter", ["a", "b"])
    for value in ("a", 3, ["a"], {1: 2}, np.array([1])):
        with pytest.raises(QuantenvError, match=r"x is .*: expected a mapping from names to numbers"):
            named(value, "x", "numbers")
    for value in ("no", 0, 1.0, None, np.array([True, False])):
        with pytest.raises(QuantenvError, match=r"x is .*: expected True or False"):
            switch(value, "x")


def test_seeds_and_options():
    assert read_seed(None) is None
    assert read_seed(2**70) == 2**70
    assert type(read_seed(np.uint32(5))) is int
    assert read_options(None) == {}
    with pytest.raises(QuantenvError, match="seed is -1: expected a whole number, at least 0"):
        read_seed(-1)
    with pytest.raises(QuantenvError, match="options is 3"):
        read_options(3)


def test_values_are_quoted_on_one_short_line():
    assert shown("a" * 10_000).startswith("'aaa")
    for value in ("a" * 10_000, HUGE, 10**5000, np.arange(10_000).reshape(100, 100), list(range(10_000))):
        assert len(shown(value)) <= 80
        assert "\n" not in shown(value)
        assert len(str(unknown_name("thing", value, ["b"]))) < 150
