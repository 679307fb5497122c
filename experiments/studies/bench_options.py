"""The options of `make bench`: one set for all its parts, so that a small run of everything is one command."""

import math
import os
from dataclasses import dataclass

from quantenv.core.typed import MOST_SEED, MOST_THREADS, MOST_WORKERS, check_fields, require_within


@dataclass(frozen=True)
class BenchOptions:
    """Measures everything that is claimed of evaluation, table environments and the store."""

    only: str = ""
    """Parts to measure, as evaluator,store; all by default. What else the results hold stays as it is."""
    images: int = 1000
    """Images of ResNet-20's search split."""
    threads: int = 2
    """Threads of torch in this process."""
    rounds: int = 7
    """Interleaved rounds; medians are reported, with the least and the greatest."""
    rows: int = 512
    """Rows of the digits enumeration that are walked depth first and one by one."""
    live_rows: int = 40
    """Rows of each shipped table that are evaluated again under each of several settings."""
    enumerations: int = 1
    """Runs of the whole enumeration of digits."""
    workers: int = os.cpu_count() or 1
    """Processes of the enumeration."""
    num_envs: int = 1024
    """Copies in the vectorised table environment."""
    seconds: float = 0.5
    """Least duration of each measurement of table environments."""
    kills: int = 100
    """How often a process is killed that writes to the store."""
    evaluations: int = 4000
    """Evaluations of each of two processes that write at once; they share half of them."""
    stored: int = 65536
    """Rows of the store in which look-ups and writes are timed."""
    url: str | None = None
    """Measure the store on this database, too; what is written is deleted again."""
    seed: int = 0
    """Draws allocations and moments."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        require_within(self, 1, MOST_THREADS, "threads")
        require_within(self, 1, MOST_WORKERS, "workers")
        require_within(self, 0, MOST_SEED, "seed")
        counts = ("images", "rounds", "rows", "live_rows", "enumerations", "num_envs", "kills", "stored")
        require_within(self, 0, math.inf, "seconds", "evaluations", *counts)
