"""`python -m experiments.studies.peers.run`: does one job and writes what came of it, phase by phase.

A process of its own, so that its processor time is all that the job costs and nothing else.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.studies.peers.job import Job
from experiments.studies.peers.processor_time import Phases
from quantenv.core.errors import QuantenvError
from quantenv.core.files import CACHE_VARIABLE, STORE_OFF, STORE_VARIABLE
from quantenv.core.reading import read_json

#: Module of each program: its function ``run(job, phases)`` returns plain values.
MODULES = {"mct": "mct", "quantenv": "own", "haq": "haq"}


def in_process(job: Job) -> dict[str, Any]:
    """Does a job in a process of its own, with one thread, an empty cache and no store.

    Returns:
        What the program's module returned, the ``phases`` in processor seconds, and ``total``, those of the whole
        process.

    Raises:
        QuantenvError: If the process failed; its last words are told.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [
            sys.executable,
            "-m",
            "experiments.studies.peers.run",
            json.dumps(dataclasses.asdict(job)),
            str(output),
        ]
        kept = {CACHE_VARIABLE: str(Path(folder) / "cache"), STORE_VARIABLE: STORE_OFF}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **kept}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if ended.returncode:
            words = [line.strip() for line in ended.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise QuantenvError(f"{job.key} failed: {words[-1][:300]}")
        return read_json(output, dict[str, Any], what="result of a job")


def main(arguments: list[str]) -> int:
    """Does the job that the first argument describes, and writes the result to the second."""
    job, phases = Job.from_plain(json.loads(arguments[0])), Phases()
    try:
        result = importlib.import_module(f"experiments.studies.peers.{MODULES[job.program]}").run(job, phases)
    except QuantenvError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    phases.end("rest")
    content = {**result, "phases": phases.seconds, "total": sum(phases.seconds.values())}
    Path(arguments[1]).write_text(json.dumps(content))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
