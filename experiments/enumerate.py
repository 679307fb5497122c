"""`quantenv enumerate`: every allocation of a task, evaluated once and kept in a table."""

import datetime
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from experiments.command_line import parse_options
from experiments.console import announcements, results
from experiments.progress import ProgressView
from experiments.provenance import environment
from experiments.task_source import SourceOptions
from quantenv.errors import QuantenvError
from quantenv.evaluate.enumeration import enumerate_task
from quantenv.evaluate.workers import check_pool
from quantenv.tasks import get_task


@dataclass(frozen=True)
class EnumerateOptions(SourceOptions):
    """Evaluates every allocation of a task's weight bits on the search and the test split and writes a table.

    Allocations are walked depth first, so each layer runs once for each distinct prefix of decisions. Layers that the
    task ties get the same bits.
    """

    task: str = "digits"
    """Task; `quantenv tasks` lists them."""
    bits: str | list[int] = field(default_factory=lambda: [2, 4, 6, 8])
    """Weight bits on offer, as 2,4,6,8."""
    activation_bits: int = 8
    """Bits of all activations."""
    backend: str = "auto"
    """Arithmetic: float, integer (int8 kernels), or auto: integer where this CPU has them."""
    workers: int = os.cpu_count() or 1
    """Workers that evaluate, one thread each."""
    pool: str = "processes"
    """What workers are: processes on this machine, or ray: actors on a Ray cluster (quantenv[ray])."""
    ray_address: str | None = None
    """Ray cluster to join, as host:port; by default $RAY_ADDRESS, or a new one on this machine."""
    output: str | None = None
    """File of the table; <task>.npz by default."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise QuantenvError(f"--workers is {self.workers}; expected a whole number of at least 1.")
        check_pool(self.pool, self.ray_address)


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
    torch.set_num_threads(1)
    task = get_task(options.task, options.source)
    provenance = {
        "command": " ".join(["quantenv enumerate", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": task.source,
        **environment(task.identity, 1),
    }
    started = time.perf_counter()
    with ProgressView(announcements(), "enumerate", len(bits) ** (len(task.tied) or len(task.layers))) as view:

        def show(done: int, rows: int) -> None:
            view.show(done, f"{done / (time.perf_counter() - started):,.0f} rows/s")

        table = enumerate_task(
            task,
            f"{task.name}_table",
            bits,
            task.tied or None,
            options.activation_bits,
            options.backend,
            options.workers,
            provenance,
            show,
            options.pool,
            options.ray_address,
        )
    seconds = time.perf_counter() - started
    path = Path(options.output or f"{task.name}.npz")
    table.save(path)
    results().print(
        f"{path}: {table.rows:,} allocations of {len(table.groups)} groups on {len(table.reference)} splits in "
        f"{seconds:.1f} s ({table.rows / seconds:,.0f} rows/s), {path.stat().st_size:,} bytes, hash {table.hash}."
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
