"""Markers that would hide one another stand beside each other, near where they belong."""

import pytest

from experiments.reports.drawing import SPREAD, Series, beside_each_other


@pytest.mark.parametrize("x_log", [False, True])
@pytest.mark.parametrize("count", [2, 8, 20])
def test_markers_at_one_place_are_told_apart(count, x_log):
    series = [Series(f"agent {number}", [1.0, 10.0, 100.0], [2.0, 4.0, 6.0]) for number in range(count)]
    drawn = beside_each_other(series, x_log, (0.5, 8.5))
    assert [each.x for each in drawn] == [each.x for each in series]  # what hovering tells
    for index, x in enumerate((1.0, 10.0, 100.0)):
        places = [each.drawn_x[index] for each in drawn]
        assert places == sorted(set(places))
        if x_log:
            assert 10 ** (-2 * SPREAD) < places[0] / x < 1 < places[-1] / x < 10 ** (2 * SPREAD)
        else:
            assert x - 99 * SPREAD < places[0] < x < places[-1] < x + 99 * SPREAD


def test_what_hides_nothing_stays_in_its_place():
    alone = Series("alone", [1.0, 1.0, 5.0], [2.0, 2.0, None])  # its own points may hide each other
    other = Series("other", [3.0, 5.0], [2.0, 7.0])
    assert beside_each_other([alone, other], False, (0.5, 8.5)) == [alone, other]
