"""Benchmark part: what worker processes and Ray actors gain, as `bench_workers` measures it."""

import importlib.util
from typing import Any

from experiments import bench_workers
from experiments.bench_options import BenchOptions
from experiments.benchmark import Claim

#: Speed-ups that two workers have to reach over one process with one thread, by how a row's name begins.
TARGETS = {"2 processes": 1.9, "2 Ray actors": 1.7}
#: And any workers over one process with all cores.
TARGET_ALL_CORES = 1.0


def measure(options: BenchOptions) -> dict[str, Any]:
    """Times worker processes, and Ray actors where Ray is installed.

    Args:
        options: `workers` and `rounds` count.

    Returns:
        What `bench_workers.measure` returns, and ``not_measured``: reasons by kind of worker.
    """
    pools, missing = list(bench_workers.POOLS), {}
    if importlib.util.find_spec("ray") is None:
        pools.remove("ray")
        missing["Ray actors"] = "Ray is not installed: pip install 'quantenv[ray]'."
    chosen = bench_workers.BenchOptions(workers=options.workers, pools=pools, repeats=options.rounds)
    return {**bench_workers.measure(chosen), "not_measured": missing}


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Says which speed-ups are reached."""
    rows = []
    for task, content in measured["tasks"].items():
        for name, row in content["rows"].items():
            if name in (bench_workers.ONE_THREAD, bench_workers.ALL_CORES):
                continue
            target = next((value for start, value in TARGETS.items() if name.startswith(start)), None)
            for base, least in (("over_one_thread", target), ("over_all_cores", TARGET_ALL_CORES)):
                low, high = row[f"{base}_quartiles"]
                rows.append(
                    Claim(
                        f"{task}: speed-up of {name} {base.replace('_', ' ')} of one process",
                        "" if least is None else f">= {least}",
                        f"{row[base]:.2f} (quartiles {low:.2f} to {high:.2f})",
                        None if least is None else row[base] >= least,
                    )
                )
    rows += [Claim(kind, "", f"not measured: {why}") for kind, why in measured["not_measured"].items()]
    return rows


def to_markdown(measured: dict[str, Any]) -> str:
    """Returns the table."""
    heading, _, table = bench_workers.to_markdown(measured).partition("\n")
    return table if heading.startswith("#") else f"{heading}\n{table}"
