"""Benchmark part: the cost of one post-training evaluation, relative to a bare eager float forward of the same images.

Everything runs in one process, interleaved, on ResNet-20 and on digits. The bare forward has its batch norms unfolded
and contiguous tensors, and takes all images at once; another one takes batches as small as the evaluator's.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.studies.bench_options import BenchOptions
from experiments.studies.bench_tasks import source, timed_resnet20
from experiments.studies.harness import Claim, interleave, ratio, show, spread
from quantenv.backends.integer import KERNELS
from quantenv.backends.kernels import kernel_obstacle, saturates
from quantenv.core.allocation import Allocation
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.quantization.calibrating import CALIBRATION_BATCH
from quantenv.quantization.formats import weight_bounds
from quantenv.tasks import Task, get_task

BASE, BATCHED = "bare eager float forward", "bare eager float forward, small batches"
HAQ, HAQ_BATCHED = "HAQ's way", "HAQ's way, small batches"
#: Choices of weight bits of each of the last three layers, of allocations that share a prefix.
TAIL = (2, 4, 6, 8)
#: Weights rounded and no more. The default scheme runs the calibration images, too, to estimate batch norms again.
PLAIN_SCHEME = "linear"
#: Most that one allocation may cost under either scheme, relative to the bare forward; the simulation in float is there
#: to compare with. Without VNNI instructions int8 kernels are held to what float32 kernels are.
TARGETS = {"int8": 0.3, "float32": 0.38, "simulated": 0.6}
NAMES = {
    "int8": "exact integers on int8 kernels",
    "float32": "exact integers on float32 kernels",
    "simulated": "simulated in float",
}


class HAQEvaluator:
    """How HAQ evaluates: float weights reloaded, every layer quantized again, activations by hooks, all eager.

    Ranges are the largest absolute values, those of activations seen once on the calibration split.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        self._network = copy.deepcopy(task.network)
        self._state = copy.deepcopy(task.network.state_dict())
        self._layers = [self._network.get_submodule(layer.name) for layer in task.layers]
        self._least, self._most = [0.0] * len(self._layers), [0.0] * len(self._layers)
        self._hook(self._observe)
        self._forward(task.splits["calibration"].inputs, CALIBRATION_BATCH)

    def evaluate(self, allocation: Allocation, inputs: torch.Tensor, batch: int) -> torch.Tensor:
        """Returns the logits of inputs (N, ...), run in batches, shape (N, classes), under an allocation."""
        self._network.load_state_dict(self._state)
        for layer, (bits, _) in zip(self._layers, allocation.bits, strict=True):
            weight = layer.weight
            assert isinstance(weight, nn.Parameter)
            low, high = weight_bounds(bits)
            scale = (weight.detach().abs().flatten(1).amax(1) / high).clamp(min=1e-8)
            zero = torch.zeros_like(scale, dtype=torch.int32)
            weight.data = torch.fake_quantize_per_channel_affine(weight.detach(), scale, zero, 0, low, high)
        self._bits = [bits for _, bits in allocation.bits]
        self._hook(self._quantize)
        return self._forward(inputs, batch)

    def _hook(self, hook: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        self._handles = [
            layer.register_forward_pre_hook(lambda _, given, index=index: (hook(index, given[0]),))
            for index, layer in enumerate(self._layers)
        ]

    def _forward(self, inputs: torch.Tensor, batch: int) -> torch.Tensor:
        with torch.no_grad():
            logits = torch.cat([self._network(part) for part in inputs.split(batch)])
        for handle in self._handles:
            handle.remove()
        return logits

    def _observe(self, index: int, x: torch.Tensor) -> torch.Tensor:
        self._least[index] = min(self._least[index], float(x.min()))
        self._most[index] = max(self._most[index], float(x.max()))
        return x

    def _quantize(self, index: int, x: torch.Tensor) -> torch.Tensor:
        levels = 2 ** self._bits[index] - 1
        scale = max(self._most[index] - self._least[index], 1e-8) / levels
        return torch.fake_quantize_per_tensor_affine(x, scale, round(-self._least[index] / scale), 0, levels)


def measure(options: BenchOptions) -> dict[str, Any]:
    """Times evaluations.

    Args:
        options: `images`, `rounds` and `threads` count.

    Returns:
        For each network where its weights and images come from, and for each subject the seconds of one allocation
        and their ratios to both bare forwards, as spreads; and why int8 kernels are missing, if they are.
    """
    obstacle = kernel_obstacle()
    kernels = [name for name in KERNELS if name == "float32" or obstacle is None]
    tasks = {"resnet20": timed_resnet20(options.images), "digits": get_task("digits")}
    return {
        "rounds": options.rounds,
        "threads": options.threads,
        "kernel_obstacle": obstacle,
        "saturates": obstacle is None and saturates(),
        "networks": {
            name: {
                "source": source(task),
                "images": len(task.splits["search"]),
                "schemes": [task.scheme, PLAIN_SCHEME],
                "subjects": _time(task, kernels, options),
            }
            for name, task in tasks.items()
        },
    }


def _time(task: Task, kernels: Sequence[str], options: BenchOptions) -> dict[str, dict[str, dict[str, float]]]:
    rng = np.random.default_rng(options.seed)
    inputs = task.splits["search"].inputs
    evaluators = {(name, task.scheme): PTQEvaluator(task, "integer", name) for name in kernels}
    evaluators["simulated", task.scheme] = PTQEvaluator(task, "float")
    plain = dataclasses.replace(task, scheme=PLAIN_SCHEME)
    evaluators |= {(name, PLAIN_SCHEME): PTQEvaluator(plain, "integer", name) for name in kernels}
    simulated = evaluators["simulated", task.scheme]
    haq = HAQEvaluator(task)

    def draw() -> Allocation:
        return Allocation.make(task.layers, rng.integers(2, 9, len(task.layers)).tolist())

    def forward(batch: int) -> int:
        with torch.no_grad():
            for part in inputs.split(batch):
                task.network(part)
        return 1

    def alone(evaluator: PTQEvaluator) -> int:
        evaluator.evaluate([draw()])
        return 1

    def in_bf16() -> int:
        with torch.autocast("cpu", torch.bfloat16):
            return alone(simulated)

    def haqs_way(batch: int) -> int:
        haq.evaluate(draw(), inputs, batch)
        return 1

    def together(evaluator: PTQEvaluator) -> int:
        # All choices of the last three layers: a subtree of the depth-first enumeration.
        head = rng.integers(2, 9, len(task.layers) - 3).tolist()
        tails = list(itertools.product(TAIL, repeat=3))
        evaluator.evaluate([Allocation.make(task.layers, [*head, *tail]) for tail in tails])
        return len(tails)

    subjects: dict[str, Callable[[], int]] = {
        BASE: lambda: forward(len(inputs)),
        BATCHED: lambda: forward(simulated.batch),
        HAQ: lambda: haqs_way(len(inputs)),
        HAQ_BATCHED: lambda: haqs_way(simulated.batch),
    }
    for (name, scheme), evaluator in evaluators.items():
        subjects[_one(name, scheme)] = lambda evaluator=evaluator: alone(evaluator)  # type: ignore[misc]
        shared = f"{NAMES[name]}, `{scheme}`, {len(TAIL) ** 3} sharing a prefix"
        subjects[shared] = lambda evaluator=evaluator: together(evaluator)  # type: ignore[misc]
    subjects["simulated under bfloat16 autocast (not offered), one allocation"] = in_bf16
    seconds = interleave(subjects, options.rounds)
    return {
        name: {
            "seconds": spread(values),
            "ratio": ratio(values, seconds[BASE]),
            "ratio_to_small_batches": ratio(values, seconds[BATCHED]),
        }
        for name, values in seconds.items()
    }


def _one(name: str, scheme: str) -> str:
    """Returns what one evaluation is called."""
    return f"{NAMES[name]}, `{scheme}`, one allocation"


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Says which targets are met on ResNet-20."""
    network = measured["networks"]["resnet20"]
    where = f"ResNet-20, {network['images']:,} images ({network['source']}), {measured['threads']} threads"
    rows = []
    targets = TARGETS | ({"int8": TARGETS["float32"]} if measured["saturates"] else {})
    for (name, target), scheme in itertools.product(targets.items(), network["schemes"]):
        if name == "simulated" and scheme == PLAIN_SCHEME:
            continue
        subject = network["subjects"].get(_one(name, scheme))
        claim = f"{_one(name, scheme)} relative to a bare float forward of all images at once; {where}"
        if subject is None:
            rows.append(Claim(claim, f"<= {target}", f"not measured: {measured['kernel_obstacle']}"))
            continue
        rows.append(
            Claim(claim, f"<= {target}", show(subject["ratio"]), subject["ratio"]["median"] <= target),
        )
        claim = f"{_one(name, scheme)}, the same relative to a bare forward in small batches"
        rows.append(Claim(claim, "", show(subject["ratio_to_small_batches"])))
    rows.append(Claim("HAQ's way relative to a bare float forward", "", show(network["subjects"][HAQ]["ratio"])))
    return rows


def to_markdown(measured: dict[str, Any]) -> str:
    """Returns the table of all subjects."""
    lines = [
        "One evaluation against one bare float forward of the same images, all at once and in the simulation's "
        f"batches: {measured['threads']} threads, medians (least to greatest) of {measured['rounds']} interleaved "
        "rounds, for one allocation.",
        "",
        "| network | what | ms | ratio | ratio to small batches |",
        "|---|---|---|---|---|",
    ]
    for name, network in measured["networks"].items():
        for subject, row in network["subjects"].items():
            cells = [show(row["seconds"], ".2f", 1000), show(row["ratio"]), show(row["ratio_to_small_batches"])]
            lines.append(f"| {name} | {subject} | {' | '.join(cells)} |")
    sources = "; ".join(f"{name}: {network['source']}" for name, network in measured["networks"].items())
    return "\n".join(lines) + f"\n\nWeights and images: {sources}\n"
