"""What every benchmark does: times its subjects in turn, and writes a JSON file of all it measured, and a table."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.runs.provenance import environment
from quantenv.core.errors import QuantenvError
from quantenv.core.files import write_text
from quantenv.core.reading import read_json


class NotMeasured(Exception):
    """A part of a benchmark cannot run here; the message says why."""


@dataclass(frozen=True)
class Claim:
    """One thing that is claimed, and what was measured of it."""

    claim: str
    """What is claimed."""
    target: str
    """What would be enough; empty if there is no target and the figure only informs."""
    measured: str
    """The figure, with its spread, or why there is none."""
    met: bool | None = None
    """Whether the target is met; None without a target or a figure."""


def interleave(subjects: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Times subjects in turn, so that the machine's moods hit all alike.

    Args:
        subjects: What to time; each returns how many items it did.
        rounds: Rounds that count; one before them warms caches up.

    Returns:
        Seconds for an item, of every round, by subject.
    """
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, run in subjects.items():
            started = time.perf_counter()
            items = run()
            if turn:
                seconds[name].append((time.perf_counter() - started) / items)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the median, the least and the greatest of values."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def ratio(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Returns the spread of the ratios of values to those of the same rounds of a base."""
    return spread([value / other for value, other in zip(values, base, strict=True)])


def show(figures: Mapping[str, float], form: str = ".3g", factor: float = 1.0) -> str:
    """Writes a spread as ``median (least to greatest)``, each times a factor."""
    median, least, greatest = (format(factor * figures[key], form) for key in ("median", "least", "greatest"))
    return f"{median} ({least} to {greatest})"


def circumstances(module: str, arguments: Sequence[str], options: Any, identity: str = "") -> dict[str, Any]:
    """Says how something was measured: with which command, options and versions, and on what machine.

    Args:
        module: Name of the benchmark's module in `experiments`.
        arguments: Its command line.
        options: Its options, a dataclass; the field ``threads`` gives torch's, 1 if it has none.
        identity: Identity of the evaluator that was used, empty if there were several.
    """
    return {
        "command": f"python -m experiments.studies.{module} {' '.join(arguments)}".strip(),
        "options": asdict(options),
        "environment": {
            **environment(identity, getattr(options, "threads", 1)),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "cpu_flags": sorted(name for name, value in torch.cpu.get_capabilities().items() if value is True),
        },
    }


def write_results(
    name: str, arguments: Sequence[str], options: Any, identity: str, measured: Mapping[str, Any], table: str
) -> None:
    """Writes ``<output>/<name>.json`` and ``.md`` and prints the table.

    Args:
        name: Name of the benchmark's module.
        arguments: Its command line.
        options: Its options, a dataclass with the field ``output``, a folder; see `circumstances`.
        identity: Identity of the evaluator that was used, empty if there were several.
        measured: What was measured.
        table: Markdown.
    """
    content = {**circumstances(name, arguments, options, identity), **measured}
    write_text(Path(options.output) / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_text(Path(options.output) / f"{name}.md", table)
    sys.stdout.write(table)


def read_cases(name: str, output: str) -> dict[str, Any]:
    """Reads what a benchmark measured of other cases, which its next run keeps.

    Args:
        name: Name of the benchmark's module.
        output: Folder of ``<name>.json``.

    Returns:
        The cases by title; none if there is no file.

    Raises:
        QuantenvError: If the file is damaged.
    """
    path = Path(output) / f"{name}.json"
    if not path.is_file():
        return {}
    cases = read_json(path, dict[str, Any], what="file of a benchmark's results").get("cases")
    if not isinstance(cases, dict):
        raise QuantenvError(f"{path} does not hold the results of a benchmark: move it away.")
    return cases


def write_cases(name: str, output: str, cases: Mapping[str, Any], table: str) -> None:
    """Writes ``<output>/<name>.json``, which `read_cases` reads, and ``.md``, and prints the table."""
    write_text(Path(output) / f"{name}.json", json.dumps({"cases": cases}, indent=1) + "\n")
    write_text(Path(output) / f"{name}.md", table)
    sys.stdout.write(table)
