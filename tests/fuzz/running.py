"""Gives readers their mutants in processes that may die, and counts what came of it."""

import contextlib
import io
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.fuzz.readers import Reader, make_part

ROOT = Path(__file__).parents[2]
#: What must not happen.
BAD = ("accepted change", "raw error", "hang", "ran code")
#: Outcomes in the order of the table's columns.
OUTCOMES = ("refused", "equal", "accepted", *BAD)
#: Seconds without a word after which a process is ended: longer than it may take for one mutant, and to begin.
SILENCE = 300


@dataclass
class Tally:
    """What came of a reader's mutants."""

    reader: Reader
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, str, str]] = field(default_factory=list)
    """Number, outcome and detail of each mutant that must not be."""
    peak: int = 0
    """Bytes of memory that its mutants took at most."""
    seconds: float = 0.0
    """What they took in all."""

    def add(self, number: int, outcome: str, detail: str) -> None:
        """Counts a mutant."""
        self.counts[outcome] += 1
        if outcome in BAD:
            self.findings.append((number, outcome, detail))


@contextlib.contextmanager
def samples(readers: Sequence[Reader]) -> Iterator[Path]:
    """Makes sound samples of readers' files in a folder of their own, which is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="quantenv-fuzz-") as name:
        root = Path(name)

        @cache
        def part(kind: str) -> Path:
            folder = root / f"part {kind}"
            folder.mkdir()
            return make_part(kind, folder)

        for reader in readers:
            folder = root / reader.name.replace("/", "_") / "sample"
            folder.mkdir(parents=True)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                made = reader.make(folder, part)
            (folder.parent / "file").write_text(str(made.relative_to(folder)))
        yield root


def run(readers: Sequence[Reader], root: Path, seed: int, mutants: int, workers: int) -> list[Tally]:
    """Tries mutants of every reader.

    Args:
        readers: The readers.
        root: Folder of `samples`.
        seed: Fixes every mutant.
        mutants: Mutants of an average reader; each has its share of them.
        workers: Processes.

    Returns:
        What came of it, reader by reader.
    """
    tallies = {reader.name: Tally(reader) for reader in readers}
    shares = [(reader.name, 0, max(1, round(mutants * reader.share))) for reader in readers]
    waiting: queue.SimpleQueue[list[tuple[str, int, int]]] = queue.SimpleQueue()
    lists = 1 if workers == 1 else 3 * workers  # to begin takes a process seconds
    for first in range(lists):
        waiting.put(shares[first::lists])

    def work() -> None:
        while True:
            try:
                mine = waiting.get_nowait()
            except queue.Empty:
                return
            while mine:
                mine = _left(mine, _one_process(mine, root, seed), tallies)

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()
    return list(tallies.values())


def _left(wanted: list[tuple[str, int, int]], lines: Iterable[dict], tallies: dict[str, Tally]) -> list:
    """Counts what a process says; returns what is left to do if it died."""
    left = {name: (first, count) for name, first, count in wanted}
    begun: tuple[str, int] | None = None
    died = "it ended without a word"
    for line in lines:
        if "died" in line:
            died = line["died"]
        elif "begun" in line:
            begun = line["reader"], line["begun"]
        elif "number" in line:
            tallies[line["reader"]].add(line["number"], line["outcome"], line["detail"])
            _, end = left[line["reader"]][0], sum(left[line["reader"]])
            left[line["reader"]] = line["number"] + 1, end - line["number"] - 1
            begun = None
        elif "peak" in line:
            tallies[line["reader"]].peak = max(tallies[line["reader"]].peak, line["peak"])
            tallies[line["reader"]].seconds += line["seconds"]
            del left[line["reader"]]
    if begun is not None:  # a reader took the process with it
        name, number = begun
        tallies[name].add(number, "hang" if died == "silence" else "raw error", died)
        left[name] = number + 1, sum(left[name]) - number - 1
    elif left:  # it did not even read its sample
        name, (first, _) = next(iter(left.items()))
        tallies[name].add(first - 1, "raw error", f"on the sound file: {died}")
        del left[name]
    return [(name, first, count) for name, (first, count) in left.items() if count]


def _one_process(wanted: list[tuple[str, int, int]], root: Path, seed: int) -> Iterator[dict]:
    jobs = [f"{name}:{first}:{count}" for name, first, count in wanted]
    command = [sys.executable, "-m", "tests.fuzz.worker", str(root), str(seed), *jobs]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QUANTENV_STORE": "off", "PYTHONPATH": path}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        silent = threading.Event()
        assert process.stdout is not None
        timer = _watch(process, silent)
        for line in process.stdout:
            timer.cancel()
            timer = _watch(process, silent)
            yield json.loads(line)
        timer.cancel()
        code = process.wait()
        if code:
            errors.seek(0)
            yield {
                "died": "silence"
                if silent.is_set()
                else f"the process ended with {code}: {' '.join(errors.read().split())[-300:]}"
            }


def _watch(process: "subprocess.Popen[str]", silent: threading.Event) -> threading.Timer:
    def end() -> None:
        silent.set()
        process.kill()

    timer = threading.Timer(SILENCE, end)
    timer.daemon = True
    timer.start()
    return timer
