"""Benchmark: what a training step of a fake-quantized ResNet-20 costs, as a share of a float one.

Steps on one batch are timed in turn, so that the machine's moods hit all alike; what compiling took is timed apart.
"""

import copy
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from experiments.bench_tasks import random_resnet20
from experiments.benchmark import NotMeasured, interleave, ratio, show, spread, write_results
from experiments.command_line import parse_options
from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.quantize import calibrate_task, trainable_network
from quantenv.quantize.fused import compiler_obstacle

NAME = "bench_qat"
FLOAT, EAGER, COMPILED = "float, eager", "LSQ, eager", "LSQ, compiled"
#: What a compiled step may cost, as a share of a float one.
TARGET = 1.1


@dataclass(frozen=True)
class BenchOptions:
    """Times training steps of ResNet-20 in float, with LSQ composed of operators, and with LSQ compiled."""

    rounds: int = 9
    """Interleaved rounds of one step each; medians are reported."""
    batch: int = 128
    """Images of 3x32x32 in a step."""
    bits: int = 4
    """Bits of all weights and activations, 2-8."""
    threads: int = 2
    """Threads of torch."""
    output: str = "experiments/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("batch", 1), ("bits", 2), ("threads", 1)):
            if getattr(self, name) < least:
                raise QuantenvError(f"--{name} is {getattr(self, name)}; expected a whole number of at least {least}.")


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0, whether or not the target is met: the table says it.
    """
    options = parse_options(BenchOptions, NAME, arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        measured = measure(options)
    finally:
        torch.set_num_threads(threads)
    write_results(NAME, arguments, options, "", measured, to_markdown(measured))
    return 0


def measure(options: BenchOptions) -> dict[str, Any]:
    """Times the steps.

    Args:
        options: What to time.

    Returns:
        ``batch``, ``bits``, ``threads``, ``rounds``, ``compile_seconds``, ``other_bits_seconds`` (the first compiled
        step under another allocation) and ``rows``: by subject the ``seconds`` of a step and its ``over_float``, each
        with median, least and greatest. ``saved_per_value`` is what compiling saves for each rounded activation, in
        seconds.

    Raises:
        NotMeasured: If nothing can be compiled here.
    """
    started = time.perf_counter()
    obstacle = compiler_obstacle()
    if obstacle is not None:
        raise NotMeasured(obstacle)
    compile_seconds = time.perf_counter() - started
    task = random_resnet20(64)
    calibration = calibrate_task(task)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(options.batch, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (options.batch,), generator=generator)

    def step_of(network: nn.Module) -> Callable[[], int]:
        optimizer = torch.optim.SGD(network.train().parameters(), 1e-4, 0.9, nesterov=True)
        return functools.partial(_step, network, optimizer, inputs, labels)

    def quantized(bits: int, fused: bool) -> Callable[[], int]:
        return step_of(trainable_network(calibration, Allocation.make(task.layers, bits, bits), fused=fused))

    subjects = {
        FLOAT: step_of(copy.deepcopy(task.network)),
        EAGER: quantized(options.bits, fused=False),
        COMPILED: quantized(options.bits, fused=True),
    }
    seconds = interleave(subjects, options.rounds)
    other = quantized(8 if options.bits != 8 else 4, fused=True)
    started = time.perf_counter()
    other()
    other_bits_seconds = time.perf_counter() - started
    rows = {
        name: {"seconds": spread(values), "over_float": ratio(values, seconds[FLOAT])}
        for name, values in seconds.items()
    }
    values = options.batch * sum(site.features for site in calibration.sites)
    saved = rows[EAGER]["seconds"]["median"] - rows[COMPILED]["seconds"]["median"]
    return {
        "batch": options.batch,
        "bits": options.bits,
        "threads": options.threads,
        "rounds": options.rounds,
        "compile_seconds": compile_seconds,
        "other_bits_seconds": other_bits_seconds,
        "saved_per_value": saved / values,
        "rows": rows,
    }


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor) -> int:
    loss = F.cross_entropy(network(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return 1


def to_markdown(measured: Mapping[str, Any]) -> str:
    """Writes what `measure` returned as a table."""
    lines = [
        "# Training steps of ResNet-20",
        "",
        f"Batch {measured['batch']} of 3x32x32, {measured['bits']}-bit weights and activations, {measured['threads']} "
        f"threads; medians of {measured['rounds']} interleaved rounds (least to greatest). The float network is the "
        "eager one, with its batch norms.",
        "",
        "| step | ms | over float, eager |",
        "|---|---|---|",
    ]
    for name, row in measured["rows"].items():
        lines.append(f"| {name} | {show(row['seconds'], '.0f', 1e3)} | {show(row['over_float'], '.2f')} |")
    met = measured["rows"][COMPILED]["over_float"]["median"] <= TARGET
    lines += [
        "",
        f"Target: compiled at most {TARGET} of float: {'met' if met else '**not met**'}. Compiling took "
        f"{measured['compile_seconds']:.1f} s; the first step under another allocation, "
        f"{measured['other_bits_seconds']:.2f} s.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
