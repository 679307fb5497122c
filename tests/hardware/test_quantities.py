import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantenv.core.errors import QuantenvError
from quantenv.hardware.quantities import METRICS, PRINTED_UNITS, format_quantity, parse_quantity, units_of

SI = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "": 1.0}
IEC = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
BASE = {"size": "B", "bops": "BOPs", "latency": "s", "energy": "J", "memory": "B"}


@pytest.mark.parametrize(
    ("metric", "text", "value"),
    [
        ("size", "18KiB", 18_432),
        ("size", "18 KB", 18_000),
        ("size", " 1.5MiB ", 1_572_864),
        ("size", "2GB", 2e9),
        ("size", "7B", 7),
        ("size", "1e3B", 1000),
        ("memory", "18KiB", 18_432),
        ("bops", "1.2GBOPs", 1.2e9),
        ("bops", "3 MBOPs", 3e6),
        ("bops", "9kBOPs", 9e3),
        ("bops", "5BOPs", 5),
        ("latency", "3ms", 3e-3),
        ("latency", ".5us", 5e-7),
        ("latency", "2µs", 2e-6),
        ("latency", "2s", 2),
        ("energy", "2mJ", 2e-3),
        ("energy", "4.5 uJ", 4.5e-6),
        ("energy", "8e2pJ", 8e-10),
    ],
)
def test_absolute_quantities(metric, text, value):
    number, unit = parse_quantity(metric, text)
    assert number == pytest.approx(value, rel=1e-15)
    assert unit


@pytest.mark.parametrize("metric", METRICS)
def test_every_unit_has_the_value_of_its_prefix(metric):
    for unit, value in units_of(metric).items():
        prefix = unit.removesuffix(BASE[metric])
        assert value == pytest.approx((IEC if prefix in IEC else SI)[prefix], rel=1e-15)


def test_a_plain_number_has_no_unit():
    assert parse_quantity("size", "0.4") == (0.4, "")


@pytest.mark.parametrize(
    ("metric", "text", "message"),
    [
        ("size", "3ms", "'3ms' has a unit of latency; size is measured in B, KiB"),
        ("latency", "2mJ", "unit of energy"),
        ("energy", "18KiB", "unit of size"),
        ("size", "18KiBs", r"Unknown unit of size 'KiBs'.*Did you mean 'KiB'"),
        ("bops", "1.2GBOPS", "Did you mean 'GBOPs'"),
        ("energy", "2MJ", "Unknown unit of energy 'MJ'"),
        ("size", "much", "'much' is not a number"),
        ("size", "", "is not a number"),
        ("size", "nan", "is not a number"),
        ("size", "1,000B", "is not a number"),
        ("size", "1..2B", "is not a number"),
        ("seize", "1B", "Unknown metric 'seize'. Did you mean 'size'"),
    ],
)
def test_malformed_quantities_are_refused(metric, text, message):
    with pytest.raises(QuantenvError, match=message):
        parse_quantity(metric, text)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("size", 1751, "1.71 KiB"),
        ("size", 1023, "1023 B"),
        ("size", 1023.9, "1.00 KiB"),
        ("size", 12.5, "12.5 B"),
        ("size", 3 * 2**40, "3072 GiB"),
        ("bops", 3.2e6, "3.20 MBOPs"),
        ("bops", 0, "0 BOPs"),
        ("latency", 12.34e-6, "12.3 us"),
        ("latency", 999.96e-6, "1.00 ms"),
        ("latency", 999.4e-6, "999 us"),
        ("latency", 2e-11, "0.0200 ns"),
        ("latency", 2e-15, "2.00e-06 ns"),
        ("energy", 4.5e-6, "4.50 uJ"),
        ("energy", -4.5e-6, "-4.50 uJ"),
        ("energy", 150.0, "150 J"),
        ("energy", 1.5e9, "1.50e+09 J"),
        ("latency", float("inf"), "inf s"),
    ],
)
def test_formatting(metric, value, text):
    assert format_quantity(metric, value) == text


def test_formatting_an_unknown_metric_is_refused():
    with pytest.raises(QuantenvError, match="Unknown metric"):
        format_quantity("weight", 1.0)


@given(st.sampled_from(METRICS), st.floats(1e-18, 1e18))
def test_what_is_printed_reads_back_to_three_digits(metric, value):
    text = format_quantity(metric, value)
    number, unit = parse_quantity(metric, text)
    assert number == pytest.approx(value, rel=5.1e-3)
    assert unit in PRINTED_UNITS[metric]
    assert format_quantity(metric, number) == text
