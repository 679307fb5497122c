"""`quantenv enumerate`: every allocation of a task, evaluated once and kept in a table.

Rows are kept beside the table as they are evaluated, until it is written: the same command goes on where one ended.
"""

import dataclasses
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.options.console import announcements, results
from experiments.options.parsing import parse_options
from experiments.options.tools import EnumerateOptions
from experiments.runs.progress import ProgressView
from experiments.runs.provenance import environment
from quantenv.core.errors import QuantenvError
from quantenv.core.files import check_place
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.preparing import bringing
from quantenv.evaluation.table.enumeration import enumerate_task
from quantenv.evaluation.table.row_blocks import RowBlocks
from quantenv.quantization.prepared import read_prepared
from quantenv.sensitivity import layer_sensitivity
from quantenv.tasks import get_task


def main(arguments: Sequence[str]) -> int:
    """Enumerates a task.

    Args:
        arguments: The command line after ``enumerate``.

    Returns:
        Exit code 0.

    Raises:
        QuantenvError: For a mistake in the options.
    """
    options = parse_options(EnumerateOptions, "enumerate", arguments)
    bits = _bits(options.bits)
    if options.output:
        check_place(Path(options.output))
    torch.set_num_threads(1)
    task = get_task(options.task, dataclasses.replace(options.source, prepared=None))
    if options.source.prepared is not None:
        task = bringing(task, read_prepared(Path(options.source.prepared)))
    provenance = {
        "command": " ".join(["quantenv enumerate", *(each for each in arguments if not each.startswith("--output="))]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": task.source,
        **environment(task.identity, 1),
    }
    path = Path(options.output or f"{task.name}.npz")
    blocks = RowBlocks.beside(path)
    before, started = -1, 0.0
    with ProgressView(announcements(), "enumerate", len(bits) ** (len(task.tied) or len(task.layers))) as view:

        def show(done: int, rows: int) -> None:
            nonlocal before, started
            if before < 0:
                before, started = done, time.perf_counter()
                if before:
                    announcements().print(f"{before:,} of {rows:,} rows are kept from before in {blocks.folder}.")
            view.show(done, f"{(done - before) / max(time.perf_counter() - started, 1e-9):,.0f} rows/s")

        table = enumerate_task(
            task,
            f"{task.name}_table",
            layer_sensitivity(PTQEvaluator(task, options.backend), images=None),
            bits,
            task.tied or None,
            options.activation_bits,
            options.backend,
            options.workers,
            provenance,
            show,
            options.pool,
            options.ray_address,
            blocks,
        )
    seconds, rows = max(time.perf_counter() - started, 1e-9), table.rows - before
    table.save(path)
    blocks.remove()
    results().print(
        f"{path}: {table.rows:,} allocations of {len(table.groups)} groups on {len(table.reference)} splits, {rows:,} "
        f"evaluated in {seconds:.1f} s ({rows / seconds:,.0f} rows/s), {path.stat().st_size:,} bytes, hash "
        f"{table.hash}."
    )
    return 0


def _bits(given: str | list[int]) -> tuple[int, ...]:
    items = given.split(",") if isinstance(given, str) else given
    try:
        bits = tuple(sorted(int(item) for item in items))
    except ValueError:
        bits = ()
    if not bits or len(set(bits)) != len(bits) or not all(1 <= b <= 8 for b in bits):
        raise QuantenvError(f"--bits is {given!r}; expected different whole numbers from 1 to 8, such as 2,4,6,8.")
    return bits


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
