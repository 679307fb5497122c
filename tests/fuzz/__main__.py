"""Mutates every kind of file and reads it: `make fuzz`.

    python -m tests.fuzz [--mutants N] [--seed N] [--workers N] [--only PART_OF_A_NAME] [--show]

Prints a row for each reader; exit code 1 if a change of a file of ours was accepted, a reader raised an error that is
not ours or took too long, or anything ran.
"""

import argparse
import os
import sys
import time
from collections import Counter

from tests.fuzz.readers import READERS
from tests.fuzz.running import BAD, OUTCOMES, Tally, run, samples


def main(arguments: list[str]) -> int:
    """Runs it; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--mutants", type=int, default=500, help="of an average reader (500: some 20,000 in all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="readers whose names hold this text")
    options = parser.parse_args(arguments)
    readers = [reader for reader in READERS if options.only in reader.name]
    os.environ["QUANTENV_STORE"] = "off"
    began = time.perf_counter()
    with samples(readers) as root:
        tallies = run(readers, root, options.seed, options.mutants, options.workers)
    sys.stdout.write(table(tallies) + f"\n{time.perf_counter() - began:.0f} s, seed {options.seed}\n")
    for tally in tallies:
        for (outcome, detail), numbers in _kinds(tally).items():
            sys.stdout.write(
                f"{tally.reader.name}: {outcome}, {len(numbers)} times, as mutant {numbers[0]}: {detail}\n"
            )
    return int(any(tally.findings for tally in tallies))


def table(tallies: list[Tally]) -> str:
    """Writes what came of each reader's mutants, as Markdown."""
    rows = ["| file | ours | mutants | " + " | ".join(OUTCOMES) + " | peak, MB | seconds |", "|---|---|" + "--:|" * 10]
    total: Counter[str] = Counter()
    for tally in tallies:
        total += tally.counts
        rows.append(_row(tally.reader.name, "yes" if tally.reader.own else "", tally.counts, tally.peak, tally.seconds))
    rows.append(
        _row(
            "all", "", total, max((tally.peak for tally in tallies), default=0), sum(tally.seconds for tally in tallies)
        )
    )
    return "\n".join(rows)


def _row(name: str, own: str, counts: Counter[str], peak: int, seconds: float) -> str:
    cells = [f"**{counts[each]}**" if each in BAD and counts[each] else str(counts[each]) for each in OUTCOMES]
    return f"| {name} | {own} | {counts.total()} | {' | '.join(cells)} | {peak / 1e6:.0f} | {seconds:.1f} |"


def _kinds(tally: Tally) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = {}
    for number, outcome, detail in tally.findings:
        found.setdefault((outcome, detail), []).append(number)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
