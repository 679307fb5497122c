"""`make bench`: everything that is claimed of evaluation, table environments and the store, measured.

Writes one JSON file and one Markdown table. Each part is written as soon as it is measured, with the versions and the
machine it was measured on, so that an interrupted run keeps what it has, and `--only` brings single parts up to date.
"""

import dataclasses
import datetime
import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.options.console import announcements
from experiments.options.parsing import parse_options
from experiments.studies.bench_options import BenchOptions
from experiments.studies.harness import Claim, NotMeasured, circumstances
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.files import write_text
from quantenv.core.reading import read_json

NAME = "bench"
#: What the table says of versions and of the CPU's flags; the JSON file holds all of them.
VERSIONS, VECTOR_FLAGS = ("quantenv", "torch", "numpy", "gymnasium"), ("avx", "amx", "neon", "sve", "sme")


@dataclass(frozen=True)
class Part:
    """One part of the benchmark."""

    title: str
    """Heading of its table."""
    measure: Callable[[BenchOptions], dict[str, Any]]
    """Measures it; plain values that JSON holds."""
    claims: Callable[[dict[str, Any]], list[Claim]]
    """Reads from what was measured what is claimed, and whether it holds."""
    to_markdown: Callable[[dict[str, Any]], str]
    """Writes what was measured as a table, without a heading."""


def _part(title: str, module: str) -> Part:
    """Returns the part that a module with the functions of `Part` is; it is imported when it is first used."""

    def call(name: str) -> Callable[[Any], Any]:
        return lambda given: getattr(importlib.import_module(f"experiments.studies.{module}"), name)(given)

    return Part(title, call("measure"), call("claims"), call("to_markdown"))


#: In the order in which they are measured.
PARTS = {
    "evaluator": _part("One evaluation", "bench_evaluator"),
    "agreement": _part("Float and integer backend", "bench_agreement"),
    "rows": _part("Rows of tables", "bench_rows"),
    "prefix": _part("Shared prefixes", "bench_prefix"),
    "enumeration": _part("Enumeration", "bench_enumeration"),
    "table_env": _part("Table environments", "bench_table_env"),
    "store": _part("The store", "bench_store"),
}


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0, whether or not the targets are met: the table says it.

    Raises:
        QuantenvError: If a part is unknown, or the results of an earlier run cannot be read.
    """
    options = parse_options(BenchOptions, NAME, arguments)
    folder = Path(options.output)
    parts = _load(folder)
    for name in _chosen(options.only):
        announcements().print(f"Measuring {name}.")
        parts[name] = _run(PARTS[name], options, arguments)
        parts = {known: parts[known] for known in PARTS if known in parts}
        write_text(folder / f"{NAME}.json", json.dumps({"parts": parts}, indent=1) + "\n")
        write_text(folder / f"{NAME}.md", to_markdown(parts))
    sys.stdout.write(to_markdown(parts))
    return 0


def to_markdown(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes parts as the table of claims and a table of each part.

    Args:
        parts: By name, as in the JSON file.

    Returns:
        Markdown.
    """
    lines = [
        "# What `make bench` measured",
        "",
        "Medians (least to greatest). A claim without a target only informs. Exact regret of the agents on the table "
        "tasks: `make bench-regret`.",
        "",
        "| part | claim | target | measured | met |",
        "|---|---|---|---|---|",
    ]
    for name, part in parts.items():
        for claim in part["claims"]:
            met = {True: "yes", False: "**no**", None: ""}[claim["met"]]
            lines.append(f"| {name} | {claim['claim']} | {claim['target']} | {claim['measured']} | {met} |")
    places = {name: _where(part["environment"]) for name, part in parts.items()}
    common = len(set(places.values())) == 1
    if common:
        lines += ["", next(iter(places.values()))]
    for name, part in parts.items():
        lines += ["", f"## {PARTS[name].title}", "", f"{part['date']}, {part['seconds']:,.0f} s."]
        if not common:
            lines.append(places[name])
        lines += ["", PARTS[name].to_markdown(part["measured"]).strip() if part["measured"] else "Not measured here."]
    return "\n".join(lines) + "\n"


def _run(part: Part, options: BenchOptions, arguments: Sequence[str]) -> dict[str, Any]:
    threads, started = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(options.threads)
    try:
        measured = part.measure(options)
        claims = part.claims(measured)
    except (NotMeasured, QuantenvError) as error:
        measured, claims = {}, [Claim(part.title, "", f"not measured: {error}")]
    finally:
        torch.set_num_threads(threads)
    shown = dataclasses.replace(options, url=None)  # a URL may hold a password
    return {
        **circumstances(NAME, [item for item in arguments if not item.startswith("--url")], shown),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - started, 1),
        "claims": [asdict(claim) for claim in claims],
        "measured": measured,
    }


def _chosen(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()] or list(PARTS)
    for name in names:
        if name not in PARTS:
            raise unknown_name("part of the benchmark", name, PARTS)
    return names


def _load(folder: Path) -> dict[str, Any]:
    """Reads the parts that were measured before."""
    path = folder / f"{NAME}.json"
    if not path.is_file():
        return {}
    parts = read_json(path, dict[str, Any], what="file of a benchmark's results").get("parts")
    if not isinstance(parts, dict):
        raise QuantenvError(f"{path} does not hold the results of a benchmark: move it away.")
    return {name: parts[name] for name in PARTS if name in parts}


def _where(environment: Mapping[str, Any]) -> str:
    """Says in a sentence on what machine and with what versions a part was measured."""
    packages = environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in VERSIONS if packages.get(name))
    revision = (environment["git_revision"] or "no checkout").replace("-dirty", ", changed")
    flags = " ".join(flag for flag in environment["cpu_flags"] if flag.startswith(VECTOR_FLAGS))
    return (
        f"{environment['cpu']}, {environment['cores']} cores ({flags}), {environment['threads']} threads; "
        f"Python {environment['python']}, {versions}; revision {revision}."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
