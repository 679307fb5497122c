"""`quantenv sensitivity`: how much each layer alone harms the network at each bit-width."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from rich.table import Table

from experiments.options.console import announcements, results
from experiments.options.parsing import parse_options
from experiments.options.tools import SensitivityOptions
from experiments.runs.progress import ProgressView
from quantenv.core.allocation import MAX_BITS
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.shipped import resolve_task
from quantenv.sensitivity import Sensitivity, Settings, kinds, measure
from quantenv.sensitivity.kinds import KINDS, PARTS
from quantenv.tasks import Task

ALL = "all"


def main(arguments: Sequence[str]) -> int:
    """Measures and prints.

    Args:
        arguments: The command line after ``sensitivity``.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options, or a cache directory that cannot be written.
    """
    options = parse_options(SensitivityOptions, "sensitivity", arguments)
    settings = options.settings
    torch.set_num_threads(options.threads)
    subject = resolve_task(options.task, options.source)
    chosen = kinds(subject) if options.kind == ALL else (options.kind or kinds(subject)[0],)
    offered = np.zeros((len(PARTS), len(subject.layers), MAX_BITS), dtype=bool)
    for of_part, bits in zip(offered, (options.bits, options.activation_bits), strict=True):
        of_part[:, np.array(bits, dtype=np.int64) - 1] = True
    measured = [measure_shown(subject, kind, settings, offered) for kind in chosen]
    names = [layer.name for layer in subject.layers]
    say = results()
    if options.json:
        content = {"task": options.task, "layers": names, "settings": asdict(settings)}
        content["sensitivities"] = {row.kind: _as_json(row) for row in measured}
        say.print(json.dumps(content, indent=1), markup=False, highlight=False, soft_wrap=True)
        return 0
    for row in measured:
        say.print(f"\n{options.task}, {row.kind}: {KINDS[row.kind]}, relative to 8 bits everywhere", highlight=False)
        for part, harms in (("weights", row.weights), ("activations", row.activations)):
            if np.isfinite(harms[:, :-1]).any():
                say.print(drawn(part, harms, names), highlight=False)
        say.print(f"Measuring it alone costs as much as {row.evaluations:,.1f} evaluations.", highlight=False)
        for note in row.notes:
            say.print(note, highlight=False)
    if not isinstance(subject, EvaluationTable):
        from quantenv.sensitivity.network import sensitivity_file

        file = sensitivity_file(subject, settings)
        where = f"Kept in {file}." if file.exists() else "All of it came with the prepared network."
        say.print(where, highlight=False, soft_wrap=True)
    return 0


def measure_shown(
    subject: Task | EvaluationTable, kind: str, settings: Settings, offered: np.ndarray | None = None
) -> Sensitivity:
    """Measures a kind under a progress bar, which is shown only if there is something to measure.

    Args:
        subject: A task or a table.
        kind: The kind.
        settings: How a network is measured.
        offered: Which bits are measured; see `quantenv.sensitivity.measure`.
    """
    view: ProgressView | None = None

    def show(done: int, total: int, what: str) -> None:
        nonlocal view
        if view is None:
            view = ProgressView(announcements(), f"sensitivity {kind}", total)
            view.__enter__()
        view.show(done, what)

    try:
        return measure(subject, kind, settings, show, offered)
    finally:
        if view is not None:
            view.__exit__(None, None, None)


def drawn(part: str, harms: np.ndarray, names: Sequence[str]) -> Table:
    """Draws a row per layer and a column per bit-width below 8 whose harm is known.

    Args:
        part: ``weights`` or ``activations``.
        harms: Harm of [layer, bits - 1], (L, 8).
        names: Names of the layers.
    """
    columns = [bit for bit in range(7) if not np.isnan(harms[:, bit]).all()]
    table = Table(f"bits of {part}", *(str(bit + 1) for bit in columns))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in zip(names, harms, strict=True):
        table.add_row(name, *(_short(row[bit]) for bit in columns))
    return table


def _short(value: float) -> str:
    text = f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
    return text.replace("e-0", "e-")


def _as_json(row: Sensitivity) -> dict[str, object]:
    return {
        "weights": [[None if np.isnan(value) else value for value in layer] for layer in row.weights.tolist()],
        "activations": [[None if np.isnan(value) else value for value in layer] for layer in row.activations.tolist()],
        "evaluations": row.evaluations,
        "identity": row.identity,
        "notes": list(row.notes),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
