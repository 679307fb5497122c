"""The console script `quantenv`: finds the command, runs it, and turns the user's mistakes into one sentence.

Only the command that was asked for is imported, so `quantenv --help` loads no torch.
"""

import importlib
import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from experiments.options.signals import (
    EndAtOnce,
    Interrupted,
    end_at_once,
    exiting_at_once,
    ignore_from_now_on,
    restore,
)

PROGRAM = "quantenv"


@dataclass(frozen=True)
class Command:
    """A subcommand: where its `main` lives and what it is for."""

    target: str
    """``module:function`` of a function from arguments to exit code."""
    summary: str
    """One line for `quantenv --help`."""
    options: str | None = None
    """``module:class`` of its options, where `target` imports torch: --help needs none."""


COMMANDS = {
    "train": Command(
        "experiments.cli.train:main",
        "search with an agent, fine-tune the best allocation, compare with uniform",
        "experiments.options.runs:TrainOptions",
    ),
    "finetune": Command(
        "experiments.cli.finetune:main",
        "quantization-aware fine-tuning of a run's or any file's allocation",
        "experiments.options.runs:FinetuneOptions",
    ),
    "validate": Command(
        "experiments.cli.validate:main",
        "evaluate a run's recorded allocations again and compare",
        "experiments.options.runs:ValidateOptions",
    ),
    "benchmark": Command(
        "experiments.cli.benchmark:main",
        "agents x tasks x budgets x seeds: every evaluation, and a leaderboard",
        "experiments.leaderboard.suite:BenchmarkOptions",
    ),
    "report": Command(
        "experiments.cli.report:main",
        "runs and benchmarks as one HTML page and pictures",
        "experiments.options.tools:ReportOptions",
    ),
    "tune": Command(
        "experiments.cli.tune:main",
        "look for an agent's options, on seeds that no benchmark uses",
        "experiments.cli.search_options:TuneOptions",
    ),
    "prepare": Command(
        "experiments.cli.prepare:main",
        "make, export or check a task's prepared network, the numbers that evaluations stand on",
        "experiments.options.tools:PrepareOptions",
    ),
    "enumerate": Command(
        "experiments.cli.enumerate:main",
        "evaluate every allocation of a task into a table",
        "experiments.options.tools:EnumerateOptions",
    ),
    "optimum": Command("experiments.cli.optimum:main", "the best allocation of a table task within a budget, exactly"),
    "pareto": Command(
        "experiments.cli.pareto:main",
        "the whole front of accuracy against a cost, in one run",
        "experiments.cli.search_options:ParetoOptions",
    ),
    "sensitivity": Command(
        "experiments.cli.sensitivity:main",
        "how much each layer alone harms at each bit-width",
        "experiments.options.tools:SensitivityOptions",
    ),
    "solve": Command("experiments.cli.solve:main", "the exact optimum of a problem file or of a task's sensitivities"),
    "store": Command("experiments.cli.store:main", "look at, export, merge or prune the store of evaluations"),
    "pretrain": Command(
        "experiments.cli.pretrain:main",
        "train the float network of cifar10, cifar100, fashionmnist or mnist",
        "experiments.options.tools:PretrainOptions",
    ),
    "tasks": Command("experiments.cli.listing:list_tasks", "list the tasks"),
    "agents": Command("experiments.cli.listing:list_agents", "list the agents and their options"),
    "layers": Command(
        "experiments.cli.layers:main",
        "the quantizable layers of a torchvision network, or of yours",
        "experiments.options.tools:LayersOptions",
    ),
    "devices": Command("experiments.cli.listing:list_devices", "list the devices"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Command line without the program's name; None means the process's own.

    Returns:
        Exit code: 0; 1 if a validation found a mismatch, or a disk failed; 2 for a mistake in the input, said in one
        sentence on stderr; 130, 143 or 129 if interrupted by Ctrl-C, SIGTERM or SIGHUP; 141 if nobody reads the output
        any more.
    """
    before = end_at_once()
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
        finally:
            if arguments is None:
                ignore_from_now_on()
            else:
                restore(before)
    except KeyboardInterrupt as interruption:
        with suppress(OSError):
            sys.stderr.write(f"{PROGRAM}: interrupted.\n")
        return interruption.exit_code if isinstance(interruption, EndAtOnce | Interrupted) else 130


def _run(arguments: Sequence[str]) -> int:
    """Runs one command and turns what can go wrong into one sentence."""
    with exiting_at_once():  # the first import of quantenv takes half a second
        from experiments.options.disks import DiskError, disk_failure, quiet_threads, say
        from quantenv.core.errors import QuantenvError
    try:
        try:
            with quiet_threads():
                code = _command(arguments)
        except SystemExit:  # of --help and its like
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        _forget_output()
        return 141
    except QuantenvError as error:
        say(str(error))
        return 1 if isinstance(error, DiskError) or disk_failure(error) is not None else 2
    except Exception as error:
        failure = disk_failure(error)
        if failure is not None:
            say(f"{failure}, and give the same command again.")
            _forget_output()
            return 1
        if isinstance(error, OSError) and error.filename is not None:  # a place that cannot be
            say(f"Cannot use the path {error.filename}: {error.strerror}. Give another one.")
            return 2
        raise


def _command(arguments: Sequence[str]) -> int:
    with exiting_at_once():
        from experiments.options.parsing import parse_options
        from quantenv.core.errors import unknown_name
        from quantenv.core.own_code import only_named_functions

    name, *rest = arguments
    if name.startswith("-"):
        _top_level([name, *rest])
        return 0
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    command = COMMANDS[name]
    with only_named_functions():
        with exiting_at_once():
            if command.options is not None:  # --help, and most mistakes, are answered before torch is imported
                parse_options(_named(command.options), name, rest)
            function = _named(command.target)
        return function(rest)


def _output_is_closed() -> bool:
    """Whether nobody reads what goes to stdout or stderr any more, as after ``| head -1``."""
    with suppress(OSError, ValueError):
        poll = select.poll()
        for stream in (sys.stdout, sys.stderr):
            poll.register(stream.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    return False


def _forget_output() -> None:
    """Leaves nothing that Python would try to write at its end to an output that takes nothing."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _named(name: str) -> Any:
    """Imports what ``module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _top_level(arguments: list[str]) -> None:
    """Answers ``--help`` and ``--version``, which exit by themselves; anything else is an unknown option."""
    import argparse

    from quantenv import __version__
    from quantenv.core.errors import unknown_name

    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} <command> [options]",
        description="Mixed-precision quantization: bits per layer under a budget, found by an agent.",
        epilog=f"commands:\n{commands}\n\n`{PROGRAM} <command> --help` explains every option of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=True,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    _, unknown = parser.parse_known_args(arguments)
    raise unknown_name("option", unknown[0], ["--help", "--version"])


if __name__ == "__main__":
    sys.exit(main())
