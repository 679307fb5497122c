import pytest

from experiments.runs.final_table import Report, Row
from experiments.runs.found import allocation_lines, markdown
from quantenv.core.allocation import Allocation


def report(names, found=True):
    def row(name, bits):
        allocation = Allocation(names, tuple(bits), (8,) * len(names)).to_dict()
        return Row(name, "post-training", 9, 10, 0.5, {"size": 1.0}, True, allocation)

    rows = [row("best uniform", [3] * len(names))]
    rows += [row("found", [1 + index % 8 for index in range(len(names))])] if found else []
    return Report(True, 1, {"size": 2.0}, tuple(rows), (), ())


@pytest.mark.parametrize("layers", [8, 60])
def test_each_layer_is_a_line_of_at_most_80_columns(layers):
    names = tuple(
        f"features.stage{index}.block.attention.projection.weight_quantized_convolution" for index in range(layers)
    )
    heading, *lines = allocation_lines(report(names), width=80)
    assert heading.split() == ["layer", "W/A", "uniform"]
    assert len(lines) == layers
    for index, line in enumerate(lines):
        name, bar, bits, uniform = line.split()
        assert len(line) <= 80
        assert name.startswith("…")
        assert name[1:] == names[index][-len(name) + 1 :]
        assert bar == "█" * (1 + index % 8) + "·" * (7 - index % 8)
        assert (bits, uniform) == (f"{1 + index % 8}/8", "3/8")
    assert all(line.isascii() for line in allocation_lines(report(names), 80, plain=True))


def test_narrow_terminals_and_short_names():
    heading, first, second = allocation_lines(report(("a", "bb")), width=20)
    assert first.split() == ["a", "█·······", "1/8", "3/8"]
    assert heading.index("W/A") == first.index("1/8") == second.index("2/8")


def test_without_a_uniform_or_a_found_one():
    assert allocation_lines(report(("a",), found=False)) == []
    assert markdown(report(("a",), found=False)) == ""
    alone = report(("a",))
    alone = type(alone)(True, 1, alone.budgets, alone.rows[1:], (), ())
    assert allocation_lines(alone)[1].split() == ["a", "█·······", "1/8", "-"]
    assert "```text\nlayer" in markdown(alone)
