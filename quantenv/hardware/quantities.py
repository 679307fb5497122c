"""Metrics and their units: numbers with units in, pretty numbers out. SI units inside."""

import math
import re

from quantenv.core.arguments import one_of
from quantenv.core.errors import QuantenvError, shown, unknown_name

#: Every metric, in the order in which tables and reports list them.
METRICS = ("size", "bops", "latency", "energy", "memory")

#: The SI unit (or plain count) in which each metric is kept.
BASE_UNITS = {"size": "B", "bops": "BOPs", "latency": "s", "energy": "J", "memory": "B"}

_BYTES = {"B": 1.0, "KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3}
_DECIMAL_BYTES = {"KB": 1e3, "kB": 1e3, "MB": 1e6, "GB": 1e9}

#: Printed units of each metric with their SI value, ascending.
PRINTED_UNITS: dict[str, dict[str, float]] = {
    "size": _BYTES,
    "bops": {"BOPs": 1.0, "kBOPs": 1e3, "MBOPs": 1e6, "GBOPs": 1e9, "TBOPs": 1e12},
    "latency": {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0},
    "energy": {"pJ": 1e-12, "nJ": 1e-9, "uJ": 1e-6, "mJ": 1e-3, "J": 1.0},
    "memory": _BYTES,
}

#: Units that are read besides the printed ones.
OTHER_UNITS: dict[str, dict[str, float]] = {
    "size": _DECIMAL_BYTES,
    "bops": {"KBOPs": 1e3},
    "latency": {},
    "energy": {},
    "memory": _DECIMAL_BYTES,
}

#: The longest text that is a quantity.
LONGEST = 100

_QUANTITY = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>[^\W\d_]*)", re.ASCII)


def units_of(metric: str) -> dict[str, float]:
    """Returns the units in which a metric may be given, with their SI values.

    Raises:
        QuantenvError: If the metric is unknown.
    """
    one_of(metric, "metric", METRICS)
    return PRINTED_UNITS[metric] | OTHER_UNITS[metric]


def parse_quantity(metric: str, text: str) -> tuple[float, str]:
    """Reads a number with an optional unit.

    Args:
        metric: What the quantity measures.
        text: For example ``"0.4"``, ``"18KiB"``, ``"3 ms"``, ``"1.2GBOPs"``. KB = 1000 B, KiB = 1024 B; case matters,
            because mJ and MJ do.

    Returns:
        The value in SI units and the unit; without a unit, the number as it is and ``""``.

    Raises:
        QuantenvError: If the metric is unknown, the text is not a number with a unit, or the unit is unknown or
            measures another metric.
    """
    units = units_of(metric)
    plain = text.strip().replace("\N{MICRO SIGN}", "u").replace("\N{GREEK SMALL LETTER MU}", "u")
    match = _QUANTITY.fullmatch(plain) if len(plain) <= LONGEST else None
    if match is None:
        raise QuantenvError(
            f"The {metric} budget {shown(text)} is not a number; expected a ratio in (0, 1] such as '0.4', "
            f"or a number with a unit ({', '.join(units)})."
        )
    number, unit = float(match["number"]), match["unit"]
    if not unit:
        return number, ""
    if unit in units:
        return number * units[unit], unit
    for other in METRICS:
        if unit in units_of(other):
            raise QuantenvError(
                f"The {metric} budget {shown(text)} has a unit of {other}; {metric} is measured in {', '.join(units)}."
            )
    raise unknown_name(f"unit of {metric}", unit, units)


def format_quantity(metric: str, value: float) -> str:
    """Formats an SI value with three significant digits in the unit that suits it.

    Args:
        metric: What the value measures.
        value: The value in bytes, bit operations, seconds or joules.

    Returns:
        For example ``"1.71 KiB"``, ``"3.20 MBOPs"``, ``"12.3 us"``, ``"4.50 uJ"``.

    Raises:
        QuantenvError: If the metric is unknown.
    """
    units_of(metric)
    units = list(PRINTED_UNITS[metric].items())
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {BASE_UNITS[metric]}"
    # Rounded before the unit is chosen: 999.9 us is 1.00 ms.
    unit, scale = next(((u, s) for u, s in reversed(units) if abs(float(f"{value / s:.3g}")) >= 1), units[0])
    scaled = value / scale
    exponent = math.floor(math.log10(abs(float(f"{scaled:.3g}"))))
    if exponent < -3 or exponent > 5:
        return f"{scaled:.2e} {unit}"
    return f"{scaled:.{max(0, 2 - exponent)}f} {unit}"
