"""Asks functions of tests the same questions on other machines, which this one plays in child processes.

A question is a function at the top of a test module; it takes JSON values and returns one. `answers` has it answered
by every machine of a list, `same_everywhere` insists that the answers are equal, to the last bit of every float::

    def losses():  # a question
        return [evaluation.loss for evaluation in evaluator().evaluate(ALLOCATIONS)]

    def test_losses_are_those_of_every_machine():
        assert same_everywhere(answers(losses)["losses"]) == losses()

What can be limited is limited: oneDNN's kernels by ``ONEDNN_MAX_CPU_ISA``; ATen's vectorised loops by
``ATEN_CPU_CAPABILITY``, and with them MKL's (``MKL_CBWR``), OpenBLAS's and NumPy's, which would tell as much about the
machine. A CPU can only play what it is more than: on one without AVX-512 "its own" and "AVX2" are the same.

Importing torch is what takes time, so each setting of the vectorised loops has one process for as long as the tests
run, which forks for every question, number of threads and oneDNN setting (oneDNN looks at its own when first used).
Questions share nothing but what the import of their module made.
"""

import atexit
import contextlib
import functools
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

#: Seconds that all questions asked at once may take on one machine.
LIMIT = 300
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Machine:
    """What a child process is limited to; None is what the CPU has."""

    loops: str | None
    """ATEN_CPU_CAPABILITY: "default" is what every x86-64 CPU can do."""
    kernels: str | None
    """ONEDNN_MAX_CPU_ISA."""
    threads: int

    def __str__(self) -> str:
        return f"{self.loops or 'own'} loops, {self.kernels or 'own'} kernels, {self.threads} threads"


LOOPS = (None, "avx2", "default")
KERNELS = (None, "AVX2", "SSE41")
#: Every machine that can be played: 18.
MACHINES = tuple(Machine(*each) for each in itertools.product(LOOPS, KERNELS, (1, 2)))
#: One with each setting of everything, for questions that take long.
FEW = (Machine(None, None, 2), Machine("avx2", "AVX2", 1), Machine("default", "SSE41", 2))


def answers(
    *questions: Callable[..., Any], machines: Sequence[Machine] = MACHINES, **arguments: Any
) -> dict[str, dict[Machine, Any]]:
    """Has questions answered by machines.

    Args:
        questions: Functions at the top of test modules, whose answers JSON can hold; asked in this order in one
            process for each machine.
        machines: Who answers.
        arguments: JSON values, handed to every question.

    Returns:
        By the question's name, by machine: its answer.

    Raises:
        AssertionError: If a question failed or ended its process, with the child's traceback.
    """
    names = [f"{question.__module__}:{question.__name__}" for question in questions]
    found: dict[str, dict[Machine, Any]] = {question.__name__: {} for question in questions}
    asked = {loops: [each for each in machines if each.loops == loops] for loops in LOOPS}
    for loops, each in asked.items():  # all begin before the first is waited for
        if each:
            _write(_child(loops), {"questions": names, "arguments": arguments, "machines": list(map(astuple, each))})
    said = {each: _child(each.loops).stdout.readline() for loops in LOOPS for each in asked[loops]}
    for machine, line in said.items():
        assert line, f"The process that plays {machine} has ended."
        answer = json.loads(line)
        assert "failed" not in answer, f"On {machine}: {answer['failed']}"
        for name, value in zip(found, answer["answers"], strict=True):
            found[name][machine] = value
    return found


def same_everywhere(said: dict[Machine, Any]) -> Any:
    """Returns the one answer that all machines gave.

    Raises:
        AssertionError: If they differ: which machines gave which.
    """
    groups: dict[str, list[Machine]] = {}
    for machine, answer in said.items():
        groups.setdefault(json.dumps(answer, sort_keys=True), []).append(machine)
    listing = "\n".join(f"{'; '.join(map(str, who))}:\n    {text[:500]}" for text, who in groups.items())
    assert len(groups) == 1, f"machines differ:\n{listing}"
    return json.loads(next(iter(groups)))


def limits(loops: str | None) -> dict[str, str]:
    """Returns the environment variables that limit vectorised loops."""
    if loops is None:
        return {}
    from numpy._core import _multiarray_umath as numpy_core

    has = [name for name in numpy_core.__cpu_dispatch__ if numpy_core.__cpu_features__[name]]
    beyond = has if loops == "default" else [name for name in has if "512" in name or name == "X86_V4"]
    return {
        "ATEN_CPU_CAPABILITY": loops,
        "MKL_CBWR": {"avx2": "AVX2", "default": "COMPATIBLE"}[loops],
        "OPENBLAS_CORETYPE": {"avx2": "Haswell", "default": "Nehalem"}[loops],
        "NPY_DISABLE_CPU_FEATURES": " ".join(beyond),
    }


@functools.cache
def _child(loops: str | None) -> subprocess.Popen[str]:
    """Starts the process that plays machines with these loops; it ends with the tests."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin on cores that others use take ten times as long
    environment["PYTHONHASHSEED"] = str(LOOPS.index(loops))  # sets of strings come in another order in each
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.other_machines"],
        env=environment | limits(loops),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    return process


def _write(process: subprocess.Popen[str], request: dict[str, Any]) -> None:
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()


def _answer(questions: list[str], arguments: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Becomes a machine and answers."""
    import torch

    if machine.kernels is not None:
        os.environ["ONEDNN_MAX_CPU_ISA"] = machine.kernels
    torch.set_num_threads(machine.threads)
    if machine.loops is not None:
        have = torch.backends.cpu.get_cpu_capability()
        assert have in ("DEFAULT", machine.loops.upper()), f"torch's loops are those of {have}"
    return {"answers": [_function(question)(**arguments) for question in questions]}


def _function(question: str) -> Callable[..., Any]:
    module, name = question.split(":")
    return getattr(importlib.import_module(module), name)


def _in_a_fork(act: Callable[[], dict[str, Any]]) -> str:
    """Returns, as a line of JSON, what a fork of this process makes of a function."""
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(end)
            signal.alarm(LIMIT)
            try:
                line = json.dumps(act())
            except BaseException:
                line = json.dumps({"failed": traceback.format_exc()})
            with open(start, "w") as stream:
                stream.write(line)
        finally:
            os._exit(0)
    os.close(start)
    with open(end) as stream:
        line = stream.read()
    _, status = os.waitpid(child, 0)
    return line or json.dumps({"failed": f"signal {status & 127} ended the process"})


def serve() -> None:
    """Answers requests from stdin on stdout until stdin ends; what questions print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        for question in request["questions"]:
            with contextlib.suppress(Exception):  # forks find it imported, or fail and say why
                _function(question)
        for each in request["machines"]:
            act = functools.partial(_answer, request["questions"], request["arguments"], Machine(*each))
            print(_in_a_fork(act), file=replies, flush=True)


if __name__ == "__main__":
    serve()
