"""What every benchmark writes: a JSON file of all it measured, with its command, and a table that it also prints."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.provenance import environment
from quantenv.files import write_text


def write_results(
    name: str, arguments: Sequence[str], options: Any, identity: str, measured: Mapping[str, Any], table: str
) -> None:
    """Writes ``<output>/<name>.json`` and ``.md`` and prints the table.

    Args:
        name: Name of the benchmark's module.
        arguments: Its command line.
        options: Its options, a dataclass with the fields ``output`` (a folder) and, if it has any, ``threads``.
        identity: Identity of the evaluator that was used, empty if there were several.
        measured: What was measured.
        table: Markdown.
    """
    content = {
        "command": f"python -m experiments.{name} {' '.join(arguments)}".strip(),
        "options": asdict(options),
        "environment": environment(identity, getattr(options, "threads", 1)),
        **measured,
    }
    write_text(Path(options.output) / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_text(Path(options.output) / f"{name}.md", table)
    sys.stdout.write(table)
