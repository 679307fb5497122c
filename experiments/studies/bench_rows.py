"""Benchmark part: random rows of the shipped tables against live evaluation, under everything that must not matter.

Every setting is a process of its own, which can be limited to fewer instructions than the CPU has.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.studies.bench_options import BenchOptions
from experiments.studies.bench_tasks import has_data
from experiments.studies.harness import Claim
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.evaluation.store.stored import through_store
from quantenv.evaluation.table.shipped import TABLES, get_table
from quantenv.tasks import get_task

SPLITS = ("search", "test")
OWN: dict[str, str] = {}
#: Variables that hold torch to the instructions of CPUs with AVX2 only, and of those without.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
NO_AVX = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}
#: Batches of one image take so many times as long as others that only a part of the rows is evaluated in them.
SINGLE = 20


@dataclass(frozen=True)
class Setting:
    """How rows are evaluated."""

    machine: str
    """What the process is limited to."""
    variables: dict[str, str]
    """Variables that limit it."""
    threads: int
    """Threads of torch."""
    batch: int
    """Samples at once."""
    kernels: str = "auto"
    """Kernels of `PTQEvaluator`."""
    store: bool = False
    """Whether what is compared is read back from a store."""


SETTINGS = (
    Setting("this CPU", OWN, 1, 64),
    Setting("this CPU", OWN, 2, 500, store=True),
    Setting("this CPU", OWN, 2, 64, kernels="float32"),
    Setting("this CPU", OWN, 1, 1),
    Setting("AVX2", AVX2, 1, 500),
    Setting("AVX2", AVX2, 2, 64),
    Setting("no AVX", NO_AVX, 2, 64),
)


def measure(options: BenchOptions) -> dict[str, Any]:
    """Evaluates rows of each table whose data are here, under every setting.

    Args:
        options: `live_rows` and `seed` count.

    Returns:
        By table: the number of its rows, and for each setting how many rows were compared, how many of them have the
        table's counts and losses on both splits, and the seconds that took; None of a table whose data are not here.
    """
    found: dict[str, Any] = {}
    for name, shipped in TABLES.items():
        if shipped.task == "resnet20" and not has_data():
            found[name] = None
            continue
        table = get_table(name)
        drawn = np.random.default_rng(options.seed).choice(
            table.rows, min(options.live_rows, table.rows), replace=False
        )
        results = []
        for setting in SETTINGS:
            rows = drawn.tolist() if setting.batch > 1 else drawn[: max(1, len(drawn) // SINGLE)].tolist()
            started = time.perf_counter()
            live = _in_a_process(name, rows, setting)
            seconds = round(time.perf_counter() - started, 1)
            equal = sum(
                all([known.correct, known.loss] == live[split][place] for split, known in _known(name, row).items())
                for place, row in enumerate(rows)
            )
            results.append({**asdict(setting), "rows": len(rows), "equal": equal, "seconds": seconds})
        found[name] = {"rows": table.rows, "settings": results}
    return found


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Says whether all rows are what is evaluated."""
    rows = []
    for name, of_table in measured.items():
        claim = f"random rows of {name} equal live evaluations in counts and losses, under every setting"
        if of_table is None:
            rows.append(Claim(claim, "all", "not measured: its images are not at hand"))
            continue
        settings = of_table["settings"]
        equal, compared = (sum(each[key] for each in settings) for key in ("equal", "rows"))
        rows.append(Claim(claim, "all", f"{equal} of {compared} in {len(settings)} settings", equal == compared))
    return rows


def to_markdown(measured: dict[str, Any]) -> str:
    """Returns the table: a row for each setting."""
    lines = [
        "| table | limited to | threads | batch | kernels | store | equal rows | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, of_table in measured.items():
        for each in [] if of_table is None else of_table["settings"]:
            cells = [name, each["machine"], each["threads"], each["batch"], each["kernels"]]
            cells += [
                "read back" if each["store"] else "off",
                f"{each['equal']} of {each['rows']}",
                f"{each['seconds']:.0f}",
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def live_rows(table: str, rows: list[int], threads: int, batch: int, kernels: str, store: bool) -> dict[str, Any]:
    """Evaluates rows of a table here.

    Returns:
        By split, for each row its count of correct predictions and its loss.
    """
    torch.set_num_threads(threads)
    evaluator = PTQEvaluator(get_task(TABLES[table].task), kernels=kernels)
    evaluator.batch = batch
    allocations = [get_table(table).allocation(row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        asked = through_store(evaluator, str(Path(folder) / "store.sqlite") if store else "off", table)
        for _ in range(2 if store else 1):
            found = {split: asked.evaluate(allocations, split) for split in SPLITS}
    return {split: [[each.correct, each.loss] for each in evaluations] for split, evaluations in found.items()}


def _known(name: str, row: int) -> dict[str, Any]:
    return {split: get_table(name).evaluation(row, split) for split in SPLITS}


def _in_a_process(name: str, rows: list[int], setting: Setting) -> dict[str, Any]:
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    asked = [name, rows, setting.threads, setting.batch, setting.kernels, setting.store]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.studies.bench_rows"],
        input=json.dumps(asked),
        env={**os.environ, **setting.variables, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    json.dump(live_rows(*json.load(sys.stdin)), sys.stdout)
