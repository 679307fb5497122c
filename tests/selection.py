"""What `make test-fast` leaves out: the tests that the last recorded whole run found slow, listed in `slow.txt`.

The list is made, not kept by hand: `make test ARGS=--record-slow` measures every test and writes it. What a fixture of
a wider scope takes is shared by all test functions of the file that first asked for it. Seconds are of the processor,
child processes included, so that a busy machine lists about what an idle one does.
"""

import resource
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

LIST = Path(__file__).parent / "slow.txt"
#: Seconds from which on a test function, all its cases together, is slow.
SLOW = 0.3


def function_of(node: str) -> str:
    """Returns a test's name without its parameters."""
    return node.partition("[")[0]


def listed() -> frozenset[str]:
    """Returns the test functions of the list."""
    return frozenset(LIST.read_text().split())


def clock() -> float:
    """Returns the processor's seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Seconds:
    """Sums up what tests took."""

    def __init__(self) -> None:
        self.own: dict[str, float] = defaultdict(float)
        """By test function."""
        self.shared: dict[str, float] = defaultdict(float)
        """By file: fixtures of a wider scope than one test."""

    def add(self, node: str, own: float, shared: float) -> None:
        """Adds one test."""
        self.own[function_of(node)] += own
        self.shared[node.partition("::")[0]] += shared

    def slow(self) -> list[str]:
        """Returns the slow test functions, in order."""
        functions: dict[str, list[str]] = defaultdict(list)
        for function in self.own:
            functions[function.partition("::")[0]].append(function)
        share = {file: self.shared[file] / len(names) for file, names in functions.items()}
        return sorted(name for name, own in self.own.items() if own + share[name.partition("::")[0]] >= SLOW)


def write(slow: Iterable[str]) -> None:
    """Writes the list."""
    LIST.write_text("".join(f"{name}\n" for name in slow))
