"""Problem files of `quantenv solve`: sensitivities, costs and budgets of a network as JSON, read with care.

The format is that of HAWQ-V3's published tables; `quantenv solve --help` describes it.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.search.knapsack import Knapsack
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.reading import read_json

#: One bit-width, or (weight bits, activation bits).
Option = int | tuple[int, int]

KEYS = ("layers", "bits", "perturbation", "cost", "equal_bits", "pinned", "problems")
PROBLEM_KEYS = ("cost", "budget", "published_bits", "published_objective")


@dataclass(frozen=True)
class FileProblem:
    """One of a file's problems."""

    place: str
    """Where it stands, for messages: ``problems[0]``."""
    metrics: tuple[str, ...]
    """The costs that are bounded."""
    limits: tuple[float, ...]
    """Their bounds."""
    content: Mapping[str, Any]
    """The problem as the file has it."""
    published: tuple[int, ...] | None
    """Option of each layer in the published answer, if the file has one."""


@dataclass(frozen=True, eq=False)
class ProblemFile:
    """A problem file's content, checked."""

    layers: tuple[str, ...]
    """Names of the layers, length L."""
    options: tuple[Option, ...]
    """The bits on offer, length N."""
    harms: np.ndarray
    """Float64 (L, N); inf where a layer lacks the option."""
    costs: Mapping[str, np.ndarray]
    """Costs by metric, float64 (L, N)."""
    tied: tuple[tuple[int, ...], ...]
    """Layers that have equal bits."""
    pinned: Mapping[int, int]
    """Options of layers that are not to be chosen."""
    problems: tuple[FileProblem, ...]
    """The problems."""

    def knapsack(self, metrics: Sequence[str], limits: Sequence[float]) -> Knapsack:
        """Returns the problem of meeting these limits."""
        costs = np.stack([self.costs[metric] for metric in metrics])
        return Knapsack(self.harms, costs, np.array(limits, dtype=float), tuple(metrics), self.tied, self.pinned)


def read_problem_file(path: str | Path) -> ProblemFile:
    """Reads a problem file.

    Raises:
        QuantenvError: If it is missing, no JSON or malformed; the sentence names the key.
    """
    content: Any = read_json(path, object, what="problem file")
    try:
        return _read(content)
    except QuantenvError as error:
        raise QuantenvError(f"{path}: {error}") from error


def option_key(option: Option) -> str:
    """Returns an option as files name it: ``"4"``, or ``"4/8"`` for 4-bit weights and 8-bit activations."""
    return str(option) if isinstance(option, int) else "/".join(map(str, option))


def _read(content: Any) -> ProblemFile:
    _require(isinstance(content, dict), "the file", content, "a JSON object")
    _refuse_near_misses(content, KEYS, "")
    for key in ("perturbation", "cost"):
        _require(
            isinstance(content.get(key), dict) and content[key], key, content.get(key), "a JSON object with entries"
        )
    options = _options(content)
    harms = _columns(content["perturbation"], "perturbation", options, None, nullable=True)
    layers = _layers(content, len(harms))
    costs = {
        metric: _columns(columns, f"cost[{metric!r}]", options, harms, nullable=False)
        for metric, columns in content["cost"].items()
    }
    names = {layer: index for index, layer in enumerate(layers)}
    tied = _tied(content.get("equal_bits", []), names)
    pinned = {}
    raw = content.get("pinned", {})
    _require(isinstance(raw, dict), "pinned", raw, "a JSON object from layers to bits")
    for layer, bits in raw.items():
        _known_layer(layer, names, "pinned")
        pinned[names[layer]] = _index(bits, options, f"pinned[{layer!r}]")
    try:
        Knapsack(harms, np.zeros((0, *harms.shape)), np.zeros(0), tied=tied, pinned=pinned)
    except QuantenvError as error:
        raise QuantenvError(f"equal_bits, pinned or null harms leave no choice. {error}") from error
    problems = content.get("problems", [])
    _require(isinstance(problems, list), "problems", problems, "a list of JSON objects")
    return ProblemFile(
        layers=layers,
        options=options,
        harms=harms,
        costs=costs,
        tied=tied,
        pinned=pinned,
        problems=tuple(
            _problem(problem, f"problems[{number}]", costs, options, len(layers))
            for number, problem in enumerate(problems)
        ),
    )


def _options(content: dict[str, Any]) -> tuple[Option, ...]:
    """Reads ``bits``; without it, the options are those that ``perturbation`` names."""
    if "bits" in content:
        raw, place = content["bits"], "bits"
    else:
        raw, place = list(content["perturbation"]), "perturbation"
    _require(isinstance(raw, list) and bool(raw), place, raw, "a list of bit-widths")
    options = tuple(_option(bits, place) for bits in raw)
    _require(len(set(options)) == len(options), place, raw, "each option once")
    return options


def _option(raw: Any, place: str) -> Option:
    """Reads 4, "4", [4, 8] or "4/8"."""
    parts: list[Any] = raw.split("/") if isinstance(raw, str) else raw if isinstance(raw, list) else [raw]
    if all(isinstance(part, str) and re.fullmatch("[0-9]{1,3}", part) for part in parts):
        parts = [int(part) for part in parts]
    sound = len(parts) in (1, 2) and all(type(part) is int and part > 0 for part in parts)
    _require(sound, place, raw, "bit-widths such as 4, or weight and activation bits such as [4, 8] or '4/8'")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _index(raw: Any, options: tuple[Option, ...], place: str) -> int:
    option = _option(raw, place)
    _require(option in options, place, raw, f"one of the bits {', '.join(map(option_key, options))}")
    return options.index(option)


def _columns(raw: Any, place: str, options: tuple[Option, ...], harms: np.ndarray | None, nullable: bool) -> np.ndarray:
    """Reads numbers by option and layer, as float64 (L, N).

    Args:
        raw: What the file holds.
        place: Where, for messages.
        options: The bits on offer.
        harms: The harms, which say how many layers there are and which options exist, if they were read before.
        nullable: Whether null says that a layer lacks the option.
    """
    _require(isinstance(raw, dict), place, raw, "a JSON object from bits to numbers by layer")
    by_option = {_option(key, place): column for key, column in raw.items()}
    _require(len(by_option) == len(raw), place, list(raw), "each option once")
    for option in by_option:
        if option not in options:
            raise unknown_name(f"bits in {place}:", option_key(option), map(option_key, options))
    values: list[list[float]] = []
    for option in options:
        where = f"{place}[{option_key(option)!r}]"
        _require(option in by_option, where, None, "a list of numbers by layer")
        column = by_option[option]
        count = len(harms) if harms is not None else len(values[0]) if values else None
        _require(isinstance(column, list) and bool(column), where, column, "a list of numbers by layer")
        _require(count in (None, len(column)), where, f"{len(column)} numbers", f"one for each of {count} layers")
        index = options.index(option)
        numbers = []
        for layer, number in enumerate(column):
            absent = number is None and (nullable or (harms is not None and np.isinf(harms[layer, index])))
            expected = "a finite number" + (", or null where the layer lacks the option" if nullable else "")
            _require(absent or _is_number(number), f"{where}[{layer}]", number, expected)
            numbers.append((math.inf if nullable else 0.0) if absent else float(number))
        values.append(numbers)
    return np.array(values, dtype=np.float64).T


def _layers(content: dict[str, Any], count: int) -> tuple[str, ...]:
    """Reads ``layers``; without it they are called by their index."""
    raw = content.get("layers", [str(index) for index in range(count)])
    named = isinstance(raw, list) and all(isinstance(name, str) for name in raw) and len(set(raw)) == len(raw)
    _require(named, "layers", raw, "a list of different names")
    _require(len(raw) == count, "layers", f"{len(raw)} names", f"{count}, as many as perturbation has numbers")
    return tuple(raw)


def _tied(raw: Any, names: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
    grouped = isinstance(raw, list) and all(isinstance(group, list) and group for group in raw)
    _require(grouped, "equal_bits", raw, "a list of lists of layer names")
    seen: set[str] = set()
    for number, group in enumerate(raw):
        for layer in group:
            _known_layer(layer, names, f"equal_bits[{number}]")
            _require(layer not in seen, f"equal_bits[{number}]", layer, "each layer in one group, once")
            seen.add(layer)
    return tuple(tuple(names[layer] for layer in group) for group in raw)


def _problem(
    raw: Any, place: str, costs: Mapping[str, np.ndarray], options: tuple[Option, ...], layers: int
) -> FileProblem:
    _require(isinstance(raw, dict), place, raw, "a JSON object")
    _refuse_near_misses(raw, PROBLEM_KEYS, f"{place}.")
    _require("budget" in raw, f"{place}.budget", None, "an upper bound of the cost")
    cost, budget = raw.get("cost"), raw["budget"]
    if isinstance(budget, dict):
        _require("cost" not in raw, f"{place}.cost", cost, "nothing, as budget names its costs itself")
        cost, budget = list(budget), list(budget.values())
    metrics, limits = (value if isinstance(value, list) else [value] for value in (cost, budget))
    _require(bool(metrics) and len(metrics) == len(limits), f"{place}.budget", budget, "one number for each cost")
    for metric in metrics:
        _require(isinstance(metric, str), f"{place}.cost", metric, "the name of a cost")
        if metric not in costs:
            raise unknown_name(f"cost in {place}:", metric, costs)
        _require(metrics.count(metric) == 1, f"{place}.cost", metric, "each cost once")
    for limit in limits:
        _require(_is_number(limit), f"{place}.budget", limit, "a finite number")
    published = raw.get("published_bits")
    if published is not None:
        where = f"{place}.published_bits"
        _require(isinstance(published, list) and len(published) == layers, where, published, f"bits of {layers} layers")
        published = tuple(_index(bits, options, f"{where}[{layer}]") for layer, bits in enumerate(published))
    objective = raw.get("published_objective", 0)
    _require(_is_number(objective), f"{place}.published_objective", objective, "a finite number")
    return FileProblem(place, tuple(metrics), tuple(map(float, limits)), raw, published)


def _known_layer(layer: Any, names: Mapping[str, int], place: str) -> None:
    _require(isinstance(layer, str), place, layer, "names of layers")
    if layer not in names:
        raise unknown_name(f"layer in {place}:", layer, names)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _require(condition: Any, place: str, value: Any, expected: str) -> None:
    if condition:
        return
    if value is None:
        raise QuantenvError(f"{place} is missing or null; expected {expected}.")
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    raise QuantenvError(f"{place} is {shown if len(shown) < 80 else shown[:76] + ' ...'}; expected {expected}.")


def _refuse_near_misses(content: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    """Other keys may stand beside the known ones, but not those that look like a slip of the pen."""
    for key in content:
        missing = [name for name in known if name not in content]
        near = difflib.get_close_matches(key, missing, n=1, cutoff=0.8) if key not in known else []
        if near:
            raise QuantenvError(f"{place}{key} is no key of a problem file; expected {place}{near[0]}.")
