"""Benchmark: what the store survives and what it costs, on SQLite and, on request, on PostgreSQL.

`python -m experiments.bench_store --postgres` kills a process that evaluates through the store 100 times at random
moments, lets two processes write at once, and times look-ups and writes.
"""

import json
import os
import random
import secrets
import signal
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments.command_line import parse_options
from experiments.console import announcements
from experiments.postgres_server import postgres_server
from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.evaluate.base import Evaluation
from quantenv.evaluate.store import Bits, EvaluationStore, Record
from quantenv.evaluate.stored import StoredEvaluator
from quantenv.files import write_text
from quantenv.layers import LayerSpec

NAME = "bench_store"
LAYERS, SAMPLES = 8, 1000
#: Seconds of the pretended evaluations: of the order of a write, so that kills hit both.
EVALUATION_SECONDS = 0.0003
#: Longest time that a process lives before it is killed; opening the store takes about a tenth of it.
LONGEST_LIFE = 0.15
REPEATS = 7


@dataclass(frozen=True)
class BenchStoreOptions:
    """Measures what the store survives and what it costs."""

    kills: int = 100
    """How often a process is killed."""
    evaluations: int = 4000
    """Evaluations of each of two processes that write at once; they share half of them."""
    rows: int = 65536
    """Rows of the store in which look-ups and writes are timed."""
    url: str | None = None
    """Measure on this database, too; what is written is deleted again."""
    postgres: bool = False
    """Measure on a PostgreSQL server, too, started for it on loopback; needs Debian's package postgresql."""
    seed: int = 0
    """Draws allocations and moments."""
    output: str = "experiments/results"
    """Folder of the JSON file and the table."""


@dataclass(frozen=True)
class KillResult:
    """What was left after kills."""

    kills: int
    """Processes killed while they worked."""
    begun: int
    """Evaluations begun by all processes together."""
    stored: int
    """Rows afterwards."""
    in_flight_lost: int
    """Evaluations that a killed process had begun, but not stored: at most one for each kill."""
    completed_lost: int
    """Evaluations that were followed by another one and yet are not stored: 0."""
    evaluated_again: int
    """Evaluations begun although they were stored: 0."""
    wrong: int
    """Rows with another value than was computed: 0."""


@dataclass(frozen=True)
class WritersResult:
    """What was left after two processes wrote at once."""

    distinct: int
    """Different allocations of both."""
    begun: int
    """Evaluations begun by both: more than `distinct` only where both began the same at the same moment."""
    stored: int
    """Rows afterwards."""
    wrong: int
    """Rows with another value than was computed: 0."""
    failed: int
    """Processes that ended with an error: 0."""


class ReportingEvaluator:
    """Pretends to evaluate, and reports each evaluation on a pipe before it is begun."""

    layers = tuple(
        LayerSpec(f"layer{i}", "linear", 4, 4, (1, 1), (0, 0), 1, (4,), (4,), 16, 4, 16) for i in range(LAYERS)
    )
    reference = Evaluation(900, SAMPLES, 0.25)

    def __init__(self, identity: str, index: dict[Bits, int], pipe: int) -> None:
        self.identity = identity
        self._index, self._pipe = index, pipe

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Takes a while and returns what `value_of` says."""
        results = []
        for allocation in allocations:
            os.write(self._pipe, struct.pack("<i", self._index[allocation.bits]))
            time.sleep(EVALUATION_SECONDS)
            results.append(value_of(allocation.bits))
        return results


def value_of(bits: Bits) -> Evaluation:
    """Returns the evaluation that these bits have."""
    number = zlib.crc32(repr(bits).encode())
    return Evaluation(number % SAMPLES, SAMPLES, number / 7e9)


def random_bits(count: int, seed: int) -> list[Bits]:
    """Draws different allocations of eight layers, 2-8 bits."""
    rng = random.Random(seed)
    drawn: dict[Bits, None] = {}
    while len(drawn) < count:
        drawn[tuple((rng.randint(2, 8), rng.randint(2, 8)) for _ in range(LAYERS))] = None
    return list(drawn)


def survive_kills(location: str, kills: int, seed: int) -> KillResult:
    """Kills a process that evaluates through the store at random moments, again and again.

    Args:
        location: Where the store is.
        kills: How often.
        seed: Draws allocations and moments.

    Returns:
        What was left.
    """
    rng = random.Random(seed)
    todo = random_bits(200 * kills + 2000, seed)
    identity = f"kills-{secrets.token_hex(8)}"
    stored: dict[Bits, Evaluation] = {}
    begun = lost = completed_lost = again = done = 0
    while done < kills:
        process, reports = _start(location, identity, todo)
        time.sleep(rng.uniform(0, LONGEST_LIFE))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise QuantenvError(f"A process that should have been killed ended with exit code {process.exitcode}.")
        done += 1
        order = [todo[number] for number in reports()]
        again += sum(bits in stored for bits in order)
        begun += len(order)
        stored = _all(location, identity)
        missing = [bits for bits in order if bits not in stored]
        in_flight = bool(order) and order[-1] not in stored
        lost += in_flight
        completed_lost += len(missing) - in_flight
    wrong = sum(evaluation != value_of(bits) for bits, evaluation in stored.items())
    rows = _prune(location, identity)
    return KillResult(done, begun, rows, lost, completed_lost, again, wrong)


def survive_writers(location: str, evaluations: int, seed: int) -> WritersResult:
    """Lets two processes evaluate at once through one store, half of the allocations being the same.

    Args:
        location: Where the store is.
        evaluations: Of each process.
        seed: Draws allocations.

    Returns:
        What was left.
    """
    rng = random.Random(seed)
    drawn = random_bits(evaluations + evaluations // 2, seed)
    shared, own = drawn[: evaluations // 2], drawn[evaluations // 2 :]
    identity = f"writers-{secrets.token_hex(8)}"
    processes = []
    for half in (own[: len(own) // 2], own[len(own) // 2 :]):
        todo = [*shared, *half]
        rng.shuffle(todo)
        processes.append(_start(location, identity, todo))
    begun = sum(sum(1 for _ in reports()) for _, reports in processes)
    for process, _ in processes:
        process.join()
    failed = sum(process.exitcode != 0 for process, _ in processes)
    stored = _all(location, identity)
    wrong = sum(evaluation != value_of(bits) for bits, evaluation in stored.items())
    return WritersResult(len(drawn), begun, _prune(location, identity), wrong, failed)


def store_each(store: EvaluationStore, records: Iterable[Record]) -> None:
    """Stores records one at a time, as an evaluator does."""
    for record in records:
        store.add(record)


def time_accesses(location: str, rows: int, seed: int) -> dict[str, float]:
    """Times accesses to a store of so many rows.

    Args:
        location: Where the store is.
        rows: Rows to fill it with.
        seed: Draws allocations.

    Returns:
        Microseconds by access: the median of 7 interleaved rounds.
    """
    identity = f"times-{secrets.token_hex(8)}"
    drawn = random_bits(rows + 200 * REPEATS, seed)
    known, new = drawn[:rows], drawn[rows:]
    store = EvaluationStore(location)
    started = time.perf_counter()
    store.add_all(Record(identity, "search", bits, value_of(bits), "bench", 1.0) for bits in known)
    filled = time.perf_counter() - started
    fresh = (Record(identity, "search", bits, value_of(bits), "bench") for bits in new)
    accesses: dict[str, tuple[int, Callable[[], object]]] = {
        "open": (1, lambda: EvaluationStore(location).close()),
        "find one": (200, lambda: [store.find(identity, "search", [bits]) for bits in known[:200]]),
        "find 256": (1024, lambda: [store.find(identity, "search", known[i : i + 256]) for i in range(0, 1024, 256)]),
        "find 256 missing": (1024, lambda: [store.find(identity, "test", known[:256]) for _ in range(4)]),
        "add one": (200, lambda: store_each(store, islice(fresh, 200))),
    }
    taken: dict[str, list[float]] = {name: [] for name in accesses}
    for _ in range(REPEATS):
        for name, (count, access) in accesses.items():
            started = time.perf_counter()
            access()
            taken[name].append((time.perf_counter() - started) / count * 1e6)
    store.prune(identity)
    store.close()
    return {"add many": filled / rows * 1e6, **{name: statistics.median(times) for name, times in taken.items()}}


def measure(location: str, options: BenchStoreOptions) -> dict[str, dict[str, float]]:
    """Runs every part on one database.

    Args:
        location: Where the store is.
        options: Sizes and seed.

    Returns:
        The results by part, plain.
    """
    return {
        "kills": asdict(survive_kills(location, options.kills, options.seed)),
        "writers": asdict(survive_writers(location, options.evaluations, options.seed)),
        "microseconds": time_accesses(location, options.rows, options.seed),
    }


def to_markdown(measured: dict[str, dict[str, dict[str, float]]]) -> str:
    """Returns a table of all figures: a row for each, a column for each database."""
    first = next(iter(measured.values()))
    lines = [f"| store | {' | '.join(measured)} |", "|---" * (1 + len(measured)) + "|"]
    for part, figures in first.items():
        for name in figures:
            cells = " | ".join(f"{databases[part][name]:,.4g}" for databases in measured.values())
            lines.append(f"| {part}: {name.replace('_', ' ')} | {cells} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark and writes a JSON file and a Markdown table.

    Args:
        arguments: The command line.

    Returns:
        Exit code: 0, or 1 if the store lost, duplicated or changed anything.
    """
    options = parse_options(BenchStoreOptions, NAME, arguments)
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for name, database in _databases(options).items():
        with database as location:
            announcements().print(f"Measuring {name}.")
            measured[name] = measure(location, options)
    folder = Path(options.output)
    content = {"options": asdict(options) | {"url": None}, "results": measured}  # a URL may hold a password
    write_text(folder / f"{NAME}.json", json.dumps(content, indent=1) + "\n")
    table = to_markdown(measured)
    write_text(folder / f"{NAME}.md", table)
    sys.stdout.write(table)
    return 0 if all(_is_sound(parts) for parts in measured.values()) else 1


def _databases(options: BenchStoreOptions) -> dict[str, AbstractContextManager[str]]:
    databases: dict[str, AbstractContextManager[str]] = {"SQLite": _temporary_sqlite()}
    if options.postgres:
        databases["PostgreSQL"] = postgres_server()
    if options.url is not None:
        databases[options.url.split(":")[0]] = nullcontext(options.url)
    return databases


@contextmanager
def _temporary_sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "evaluations.sqlite")


def _is_sound(parts: dict[str, dict[str, float]]) -> bool:
    kills, writers = parts["kills"], parts["writers"]
    return (
        not any(kills[name] for name in ("completed_lost", "evaluated_again", "wrong"))
        and kills["in_flight_lost"] <= kills["kills"]
        and kills["stored"] == kills["begun"] - kills["in_flight_lost"]
        and writers["stored"] == writers["distinct"]
        and not any(writers[name] for name in ("wrong", "failed"))
    )


def _start(location: str, identity: str, todo: Sequence[Bits]) -> tuple[BaseProcess, Callable[[], Iterator[int]]]:
    """Starts a process that evaluates, and returns it with what reads its reports, up to its end."""
    reader, writer = os.pipe()
    process = get_context("fork").Process(target=_work, args=(location, identity, todo, reader, writer))
    process.start()
    os.close(writer)

    def reports() -> Iterator[int]:
        with os.fdopen(reader, "rb") as file:
            while len(report := file.read(4)) == 4:
                yield struct.unpack("<i", report)[0]

    return process, reports


def _work(location: str, identity: str, todo: Sequence[Bits], reader: int, writer: int) -> None:
    os.close(reader)
    evaluator = ReportingEvaluator(identity, {bits: number for number, bits in enumerate(todo)}, writer)
    stored = StoredEvaluator(evaluator, EvaluationStore(location), "bench")
    for start in range(0, len(todo), 100):
        batch = todo[start : start + 100]
        weights_and_activations = [tuple(zip(*bits, strict=True)) for bits in batch]
        stored.evaluate([Allocation.make(evaluator.layers, w, a) for w, a in weights_and_activations])


def _all(location: str, identity: str) -> dict[Bits, Evaluation]:
    store = EvaluationStore(location)
    found = {record.bits: record.evaluation for record in store.records(identity)}
    store.close()
    return found


def _prune(location: str, identity: str) -> int:
    """Deletes what a part wrote and returns how many rows that were."""
    store = EvaluationStore(location)
    rows = store.prune(identity)
    store.close()
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
