"""Benchmark part: the wall time of enumerating digits with the command that users run, start of Python included."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.studies.bench_options import BenchOptions
from experiments.studies.harness import Claim, show, spread
from quantenv.evaluation.table.evaluation_table import EvaluationTable

#: Seconds in which all allocations of digits are to be enumerated on two cores.
TARGET = 60
BITS = "2,4,6,8"


def measure(options: BenchOptions, bits: str = BITS) -> dict[str, Any]:
    """Enumerates digits in a process of its own.

    Args:
        options: `enumerations` and `workers` count.
        bits: Weight bits on offer.

    Returns:
        The command, the table's rows and the spreads of seconds and of rows in a second.
    """
    command = [sys.executable, "-m", "experiments.cli.enumerate", "--task=digits", f"--bits={bits}"]
    command.append(f"--workers={options.workers}")
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.npz"
        for _ in range(options.enumerations):
            started = time.perf_counter()
            subprocess.run([*command, f"--output={path}"], check=True, capture_output=True, env=_environment())
            seconds.append(time.perf_counter() - started)
        rows = EvaluationTable.load(path).rows
    return {
        "command": f"quantenv enumerate {' '.join(command[3:])}",
        "runs": options.enumerations,
        "rows": rows,
        "seconds": spread(seconds),
        "rows_per_second": spread([rows / value for value in seconds]),
    }


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Says whether the enumeration is fast enough."""
    figure = f"{show(measured['seconds'], '.1f')} s, {measured['rows_per_second']['median']:,.0f} rows/s"
    claim = f"all {measured['rows']:,} weight allocations of digits on two splits, `{measured['command']}`"
    return [Claim(claim, f"<= {TARGET} s", figure, measured["seconds"]["median"] <= TARGET)]


def to_markdown(measured: dict[str, Any]) -> str:
    """Returns a sentence."""
    return (
        f"`{measured['command']}`, {measured['runs']} run(s), the whole command: {measured['rows']:,} rows in "
        f"{show(measured['seconds'], '.1f')} s, {show(measured['rows_per_second'], ',.0f')} rows/s.\n"
    )


def _environment() -> dict[str, str]:
    """Lets the command find this checkout, wherever it was started."""
    here = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))}
