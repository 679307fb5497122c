"""Benchmark: what a training step of a fake-quantized ResNet-20 costs, as a share of a float one.

Steps on one batch are timed in turn, so that the machine's moods hit all alike; what compiling took is timed apart.
"""

import copy
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from experiments.options.parsing import parse_options
from experiments.studies.bench_tasks import random_resnet20
from experiments.studies.harness import NotMeasured, interleave, ratio, show, spread, write_results
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.evaluation.preparing import calibrate_task
from quantenv.training.config import NETWORK, NEVER, QUANTIZERS
from quantenv.training.finetuning import keep_quantizers_in_float32
from quantenv.training.qat.compiling import compiled as compiled_here
from quantenv.training.qat.fused import compiler_obstacle
from quantenv.training.qat.network import trainable_network

NAME = "bench_qat"
FLOAT, EAGER = "float, eager", "LSQ, eager"
#: What is compiled, by `quantenv.training.config.COMPILE`.
COMPILED = {QUANTIZERS: "LSQ, quantizers compiled", NETWORK: "LSQ, network compiled"}
BF16 = ", bfloat16"
#: With batch norms that live in training, instead of folded ones.
LIVE_NORMS = ", live norms"
#: What a compiled step may cost, as a share of a float one.
TARGET = 1.1


@dataclass(frozen=True)
class BenchOptions:
    """Times training steps of ResNet-20 in float, with LSQ composed of operators, and with LSQ or all compiled."""

    rounds: int = 9
    """Interleaved rounds of one step each; medians are reported."""
    batch: int = 128
    """Images of 3x32x32 in a step."""
    bits: int = 4
    """Bits of all weights and activations, 2-8."""
    compiled: list[str] = field(default_factory=lambda: list(COMPILED))
    """What is compiled: quantizers, network; the latter takes a minute or two."""
    threads: int = 2
    """Threads of torch."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file and the table."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("batch", 1), ("bits", 2), ("threads", 1)):
            if getattr(self, name) < least:
                raise QuantenvError(f"--{name} is {getattr(self, name)}; expected a whole number of at least {least}.")
        for name in self.compiled:
            if name not in COMPILED:
                raise unknown_name("thing to compile", name, list(COMPILED))


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
        ``batch``, ``bits``, ``threads``, ``rounds`` and ``rows``: by subject the ``seconds`` of a step and its
        ``over_float``, each with median, least and greatest. ``compiled``: by what is compiled the ``first`` step in
        seconds, that of ``other_bits``, and what is ``saved_per_value``, for each rounded activation, in seconds.

    Raises:
        NotMeasured: If nothing can be compiled here.
    """
    obstacle = compiler_obstacle()
    if obstacle is not None:
        raise NotMeasured(obstacle)
    task = random_resnet20(64)
    calibration = calibrate_task(task)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(options.batch, *task.splits["search"].inputs.shape[1:], generator=generator)
    labels = torch.randint(0, 10, (options.batch,), generator=generator)

    def step_of(network: nn.Module, forward: Callable[..., Any], bf16: bool = False) -> Callable[[], int]:
        optimizer = torch.optim.SGD(network.train().parameters(), 1e-4, 0.9, nesterov=True)
        return functools.partial(_step, forward, optimizer, inputs, labels, bf16)

    def quantized(bits: int, compiled: str, bf16: bool = False, live: bool = False) -> Callable[[], int]:
        allocation = Allocation.make(task.layers, bits, bits)
        network = trainable_network(calibration, allocation, fused=compiled != NEVER, live_norms=live)
        if bf16:
            keep_quantizers_in_float32(network)
        return step_of(network, compiled_here(network) if compiled == NETWORK else network, bf16)

    network = copy.deepcopy(task.network)
    subjects = {FLOAT: step_of(network, network), EAGER: quantized(options.bits, NEVER)}
    first, other = {}, {}
    with torch._inductor.utils.fresh_cache():  # what an earlier run compiled would be found again
        torch._dynamo.reset()  # as would the kernels that were compiled to see whether it works here
        for name in options.compiled:
            title = COMPILED[name]
            subjects[title] = quantized(options.bits, name)
            first[name] = _seconds(subjects[title])
            other[name] = _seconds(quantized(8 if options.bits != 8 else 4, name))
            subjects[title + LIVE_NORMS] = quantized(options.bits, name, live=True)
        if NETWORK in options.compiled:
            subjects[COMPILED[NETWORK] + BF16] = quantized(options.bits, NETWORK, bf16=True)
            subjects[COMPILED[NETWORK] + LIVE_NORMS + BF16] = quantized(options.bits, NETWORK, bf16=True, live=True)
        seconds = interleave(subjects, options.rounds)
    rows = {
        name: {"seconds": spread(values), "over_float": ratio(values, seconds[FLOAT])}
        for name, values in seconds.items()
    }
    values = options.batch * sum(site.features for site in calibration.sites)
    eager = rows[EAGER]["seconds"]["median"]
    return {
        "batch": options.batch,
        "bits": options.bits,
        "threads": options.threads,
        "rounds": options.rounds,
        "compiled": {
            name: {
                "first": first[name],
                "other_bits": other[name],
                "saved_per_value": (eager - rows[COMPILED[name]]["seconds"]["median"]) / values,
            }
            for name in options.compiled
        },
        "rows": rows,
    }


def _seconds(step: Callable[[], int]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _step(
    forward: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    bf16: bool,
) -> int:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = forward(inputs).float()
    loss = F.cross_entropy(logits, labels)
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
    lines.append("")
    for name, compiled in measured["compiled"].items():
        title = COMPILED[name]
        met = {
            row: "met" if measured["rows"][row]["over_float"]["median"] <= TARGET else "**not met**"
            for row in (title, title + LIVE_NORMS)
        }
        lines.append(
            f"- {title}: at most {TARGET} of float {met[title]}, with live norms {met[title + LIVE_NORMS]}. The first "
            f"step took "
            f"{compiled['first']:.1f} s, the first one under another allocation {compiled['other_bits']:.1f} s."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
