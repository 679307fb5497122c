"""Sensitivities of a task's network, measured part by part and kept."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantenv.channel_groups import parts_of, whole
from quantenv.files import content_hash
from quantenv.quantize import SCHEMES
from quantenv.sensitivity.curvature import GRADIENT_COST, PRODUCT_COST, Curvature
from quantenv.sensitivity.deviations import DEVIATIONS, Deviations, raw_measures
from quantenv.sensitivity.float_layers import PARTS
from quantenv.sensitivity.kinds import Progress, Sensitivity, Settings, harm
from quantenv.sensitivity.measurements import Measurements, measurement_path
from quantenv.tasks import Task

#: Counted up when the numbers change for the same task and settings.
VERSION = 1
#: The split that everything is measured on. The test split is never used.
SPLIT = "search"


def measure_network(task: Task, kind: str, settings: Settings, progress: Progress) -> Sensitivity:
    """Measures a kind, or reads what was measured before; see `quantenv.sensitivity.measure`."""
    return _Measuring(task, settings, progress).sensitivity(kind)


def sensitivity_file(task: Task, settings: Settings) -> Path:
    """Returns the file in which a task's measurements are kept."""
    return measurement_path(task.name, task.scheme, SPLIT, identity_of(task, settings))


def identity_of(task: Task, settings: Settings) -> str:
    """Hashes what fixes the numbers: network, splits, scheme, settings, the version of this code and of its sums."""
    scheme = SCHEMES.get(task.scheme, task.scheme)
    numerics = torch.__version__, torch.backends.cpu.get_cpu_capability()
    return content_hash([str(VERSION), task.identity, scheme, SPLIT, json.dumps(asdict(settings)), *numerics])


class _Measuring:
    """One task under fixed settings; networks are prepared only when something has to be measured."""

    def __init__(self, task: Task, settings: Settings, progress: Progress) -> None:
        self._task, self._settings, self._progress = task, settings, progress
        self._identity = identity_of(task, settings)
        self._kept = Measurements(sensitivity_file(task, settings), self._identity)
        self._names = [layer.name for layer in task.layers]
        self._parts = parts_of(task.layers)
        sharing = {index: len(part) for part in self._parts for index in part}
        # Channel groups of a layer have the same activations, whose harm is divided evenly over them.
        self._sharing = np.array([[sharing[index]] for index in range(len(task.layers))])

    @cached_property
    def _deviations(self) -> Deviations:
        return Deviations(self._task, self._settings.images)

    @cached_property
    def _curvature(self) -> Curvature:
        return Curvature(self._task, self._settings)

    def sensitivity(self, kind: str) -> Sensitivity:
        steps = self._steps(kind)
        if any(name not in self._kept for name, _ in steps):
            with self._kept.alone():
                for done, (name, measure) in enumerate(steps):
                    self._progress(done, len(steps), name)
                    self._kept.get(name, measure)
                self._progress(len(steps), len(steps), kind)
        results = [self._kept.get(name, measure) for name, measure in steps]
        make = {"fisher": self._fisher, "hessian": self._hessian}.get(kind, self._outputs)
        weights, activations, evaluations, notes = make(kind, results)
        return Sensitivity(
            kind,
            harm(weights),
            harm(activations) / self._sharing,
            evaluations,
            content_hash([self._identity, kind]),
            notes,
        )

    def _steps(self, kind: str) -> list[tuple[str, Callable[[], Any]]]:
        """Lists the results that a kind is made of, by the names they are kept under, with what measures them."""
        count = range(len(self._names))
        if kind == "fisher":
            return [("fisher", lambda: self._curvature.fisher())]
        if kind == "hessian":
            inputs_of = [whole(layer).name for layer in self._task.layers]
            names = dict(zip(PARTS, (self._names, inputs_of), strict=True))
            traces = [
                (f"trace of {part} of {names[part][i]}", lambda i=i, part=part: asdict(self._curvature.trace(i, part)))
                for part in PARTS
                for i in count
            ]
            return [("perturbations", lambda: self._curvature.perturbations()), *traces]
        layers = [(f"outputs under {self._names[i]}", lambda i=i: self._deviations.layer(i)) for i in count]
        return [("outputs at 8 bits", lambda: self._deviations.base()), *layers]

    def _outputs(self, kind: str, results: list[Any]) -> tuple[np.ndarray, np.ndarray, float, tuple[str, ...]]:
        base, *layers = results
        weights, activations = (raw_measures(base, layers, kind, part) for part in PARTS)
        # every deviation, 8 bits everywhere and, for some kinds, the float network
        passes = len(DEVIATIONS) * (len(layers) + len(self._parts)) + 1 + (kind in ("kl", "sqnr"))
        return weights, activations, passes * self._share(self._settings.images), ()

    def _fisher(self, kind: str, results: list[Any]) -> tuple[np.ndarray, np.ndarray, float, tuple[str, ...]]:
        weights, activations = (np.array(results[0][part]) for part in PARTS)
        return weights, activations, (GRADIENT_COST + 1) * self._share(self._settings.gradient_images), ()

    def _hessian(self, kind: str, results: list[Any]) -> tuple[np.ndarray, np.ndarray, float, tuple[str, ...]]:
        perturbations, *traces = results
        # A negative average curvature is no promise that coarse bits help: HAWQ-V2 argues at a minimum of the loss.
        positive = np.maximum([trace["mean"] for trace in traces], 0).reshape(len(PARTS), -1, 1)
        weights, activations = (
            trace * np.array(perturbations[part]) for trace, part in zip(positive, PARTS, strict=True)
        )
        measured = [*traces[: len(self._names)], *(traces[len(self._names) + part[0]] for part in self._parts)]
        probes = sum(trace["probes"] for trace in measured)
        cost = (PRODUCT_COST * probes + 1) * self._share(self._settings.gradient_images)
        return weights, activations, cost, self._unreached(measured)

    def _unreached(self, traces: list[dict[str, Any]]) -> tuple[str, ...]:
        missed = [trace for trace in traces if not trace["reached"]]
        if not missed:
            return ()
        worst = max(trace["standard_error"] / abs(trace["mean"]) if trace["mean"] else np.inf for trace in missed)
        return (
            f"{len(missed)} of {len(traces)} Hessian traces have a standard error above "
            f"{self._settings.relative_error:.0%} after {self._settings.probes} probes, {worst:.0%} at worst.",
        )

    def _share(self, images: int | None) -> float:
        total = len(self._task.splits[SPLIT])
        return min(images or total, total) / total
