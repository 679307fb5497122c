"""Benchmark part: what the store survives and what it costs, on SQLite and, where it is installed, on PostgreSQL.

It kills a process that evaluates through the store at random moments, lets two processes write at once, and times
look-ups and writes.
"""

import os
import random
import secrets
import select
import signal
import struct
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
from typing import Any

from experiments.options.console import announcements
from experiments.studies.bench_options import BenchOptions
from experiments.studies.harness import Claim, show, spread
from experiments.studies.postgres_server import NotInstalledError, postgres_server
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.layers import LayerSpec
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.store.store import Bits, EvaluationStore, Record
from quantenv.evaluation.store.stored import StoredEvaluator

LAYERS, SAMPLES = 8, 1000
#: Seconds of the pretended evaluations: of the order of a write, so that kills hit both.
EVALUATION_SECONDS = 0.0003
#: Seconds of work that are stored together: a few evaluations.
GROUP_SECONDS = 10 * EVALUATION_SECONDS
#: Longest time that a process lives before it is killed, counted from its start or from its first evaluation.
LONGEST_LIFE = 0.15
#: Of so many processes one is killed at a moment counted from its start: opening the store may be hit, too.
WHILE_STARTING = 4
#: A report: the number of the group and the index of the allocation.
REPORT = "<ii"
#: Seconds to wait for a process's first evaluation.
PATIENCE = 60.0


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
    """Evaluations of the group that a killed process had begun, but not stored."""
    completed_lost: int
    """Evaluations of groups that were followed by another one and yet are not stored: 0."""
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
    """Pretends to evaluate, and reports each group of evaluations on a pipe before it is begun."""

    layers = tuple(
        LayerSpec(f"layer{i}", "linear", 4, 4, (1, 1), (0, 0), 1, (4,), (4,), 16, 4, 16) for i in range(LAYERS)
    )
    reference = Evaluation(900, SAMPLES, 0.25)

    def __init__(self, identity: str, index: dict[Bits, int], pipe: int) -> None:
        self.identity = identity
        self._index, self._pipe, self._groups = index, pipe, 0

    def evaluate(self, allocations: Sequence[Allocation], split: str = "search") -> list[Evaluation]:
        """Takes a while and returns what `value_of` says."""
        self._groups += 1
        reports = (struct.pack(REPORT, self._groups, self._index[allocation.bits]) for allocation in allocations)
        os.write(self._pipe, b"".join(reports))  # whole, or not at all: it is shorter than PIPE_BUF
        time.sleep(EVALUATION_SECONDS * len(allocations))
        return [value_of(allocation.bits) for allocation in allocations]


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
        process, reports, began = _start(location, identity, todo)
        if done % WHILE_STARTING and not began(PATIENCE):
            process.kill()
            raise QuantenvError(f"A process evaluated nothing within {PATIENCE:g} s: this machine is too busy.")
        time.sleep(rng.uniform(0, LONGEST_LIFE))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise QuantenvError(f"A process that should have been killed ended with exit code {process.exitcode}.")
        done += 1
        reported = list(reports())
        order = [todo[number] for _, number in reported]
        again += sum(bits in stored for bits in order)
        begun += len(order)
        stored = _all(location, identity)
        missing = [bits for bits in order if bits not in stored]
        in_flight = sum(group == reported[-1][0] and todo[number] not in stored for group, number in reported)
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
    begun = sum(sum(1 for _ in reports()) for _, reports, _ in processes)
    for process, *_ in processes:
        process.join()
    failed = sum(process.exitcode != 0 for process, *_ in processes)
    stored = _all(location, identity)
    wrong = sum(evaluation != value_of(bits) for bits, evaluation in stored.items())
    return WritersResult(len(drawn), begun, _prune(location, identity), wrong, failed)


def store_each(store: EvaluationStore, records: Iterable[Record]) -> None:
    """Stores records one at a time, as an evaluator does."""
    for record in records:
        store.add(record)


def time_accesses(location: str, rows: int, rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """Times accesses to a store of so many rows.

    Args:
        location: Where the store is.
        rows: Rows to fill it with.
        rounds: Interleaved rounds.
        seed: Draws allocations.

    Returns:
        Microseconds for a row, by access, as spreads; `add many`, which fills it, happens once.
    """
    identity = f"times-{secrets.token_hex(8)}"
    drawn = random_bits(rows + 200 * rounds, seed)
    known, new = drawn[:rows], drawn[rows:]
    store = EvaluationStore(location)
    started = time.perf_counter()
    store.add_all(Record(identity, "search", bits, value_of(bits), "bench", 1.0) for bits in known)
    taken = {"add many": [(time.perf_counter() - started) / rows]}
    fresh = (Record(identity, "search", bits, value_of(bits), "bench") for bits in new)
    accesses: dict[str, tuple[int, Callable[[], object]]] = {
        "open": (1, lambda: EvaluationStore(location).close()),
        "find one": (200, lambda: [store.find(identity, "search", [bits]) for bits in known[:200]]),
        "find 256": (1024, lambda: [store.find(identity, "search", known[i : i + 256]) for i in range(0, 1024, 256)]),
        "find 256 missing": (1024, lambda: [store.find(identity, "test", known[:256]) for _ in range(4)]),
        "add one": (200, lambda: store_each(store, islice(fresh, 200))),
    }
    for _ in range(rounds):
        for name, (count, access) in accesses.items():
            started = time.perf_counter()
            access()
            taken.setdefault(name, []).append((time.perf_counter() - started) / count)
    store.prune(identity)
    store.close()
    return {name: spread([1e6 * value for value in values]) for name, values in taken.items()}


def measure(options: BenchOptions) -> dict[str, Any]:
    """Runs everything on every database there is.

    Args:
        options: `kills`, `evaluations`, `stored`, `rounds`, `url` and `seed` count.

    Returns:
        The results by database, and why others were not measured.
    """
    measured: dict[str, Any] = {"databases": {}, "not_measured": {}}
    for name, database in _databases(options.url).items():
        announcements().print(f"Measuring {name}.")
        try:
            with database as location:
                measured["databases"][name] = measure_database(location, options)
        except NotInstalledError as error:
            measured["not_measured"][name] = str(error)
    return measured


def measure_database(location: str, options: BenchOptions) -> dict[str, Any]:
    """Runs everything on one database."""
    return {
        "kills": asdict(survive_kills(location, options.kills, options.seed)),
        "writers": asdict(survive_writers(location, options.evaluations, options.seed)),
        "microseconds": time_accesses(location, options.stored, options.rounds, options.seed),
    }


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Says whether every database lost, duplicated and changed nothing."""
    rows = []
    for name, parts in measured["databases"].items():
        kills, writers = parts["kills"], parts["writers"]
        figure = (
            f"lost {kills['in_flight_lost']} in flight and {kills['completed_lost']} completed ones; {kills['wrong']} "
            f"wrong, {kills['evaluated_again']} evaluated again, of {kills['begun']:,}"
        )
        claim = f"{name}: {kills['kills']} kills at random moments lose at most the group in flight"
        rows.append(Claim(claim, "no other lost, none wrong", figure, _survived(kills)))
        figure = f"{writers['stored']:,} of {writers['distinct']:,} stored, {writers['wrong']} wrong"
        sound = writers["stored"] == writers["distinct"] and not any(writers[key] for key in ("wrong", "failed"))
        rows.append(Claim(f"{name}: two writers at once lose and duplicate nothing", "all, once", figure, sound))
        each = {key: parts["microseconds"][key] for key in ("find one", "add one")}
        rows += [Claim(f"{name}: {key}, microseconds", "", show(figures, ",.1f")) for key, figures in each.items()]
    rows += [Claim(name, "", f"not measured: {why}") for name, why in measured["not_measured"].items()]
    return rows


def to_markdown(measured: dict[str, Any]) -> str:
    """Returns a table of all figures: a row for each, a column for each database."""
    databases = measured["databases"]
    lines = [f"| store | {' | '.join(databases)} |", "|---" * (1 + len(databases)) + "|"]
    for part, figures in next(iter(databases.values())).items():
        for name in figures:
            values = [parts[part][name] for parts in databases.values()]
            cells = " | ".join(show(value, ",.1f") if part == "microseconds" else f"{value:,}" for value in values)
            lines.append(f"| {part}: {name.replace('_', ' ')} | {cells} |")
    lines += [f"\n{name} was not measured: {why}" for name, why in measured["not_measured"].items()]
    return "\n".join(lines) + "\n"


def _databases(url: str | None) -> dict[str, AbstractContextManager[str]]:
    databases: dict[str, AbstractContextManager[str]] = {"SQLite": _temporary_sqlite(), "PostgreSQL": postgres_server()}
    if url is not None:
        databases[url.split(":")[0]] = nullcontext(url)
    return databases


@contextmanager
def _temporary_sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "evaluations.sqlite")


def _survived(kills: dict[str, int]) -> bool:
    return (
        not any(kills[name] for name in ("completed_lost", "evaluated_again", "wrong"))
        and kills["begun"] > 0
        and kills["stored"] == kills["begun"] - kills["in_flight_lost"]
    )


def _start(
    location: str, identity: str, todo: Sequence[Bits]
) -> tuple[BaseProcess, Callable[[], Iterator[tuple[int, int]]], Callable[[float], bool]]:
    """Starts a process that evaluates.

    Returns:
        The process, what reads its reports (number of the group, index of the allocation) up to its end, and what
        waits some seconds for the first of them.
    """
    reader, writer = os.pipe()
    process = get_context("fork").Process(target=_work, args=(location, identity, todo, reader, writer))
    process.start()
    os.close(writer)

    def reports() -> Iterator[tuple[int, int]]:
        with os.fdopen(reader, "rb") as file:
            while len(report := file.read(struct.calcsize(REPORT))) == struct.calcsize(REPORT):
                yield struct.unpack(REPORT, report)

    def began(seconds: float) -> bool:
        return bool(select.select([reader], [], [], seconds)[0])

    return process, reports, began


def _work(location: str, identity: str, todo: Sequence[Bits], reader: int, writer: int) -> None:
    os.close(reader)
    evaluator = ReportingEvaluator(identity, {bits: number for number, bits in enumerate(todo)}, writer)
    stored = StoredEvaluator(evaluator, EvaluationStore(location), "bench", GROUP_SECONDS)
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
