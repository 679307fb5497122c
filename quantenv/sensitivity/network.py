"""Sensitivities of a task's network, measured part by part and kept."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from quantenv.core.allocation import MAX_BITS
from quantenv.core.channel_groups import parts_of, whole
from quantenv.core.files import content_hash
from quantenv.evaluation.post_training import PTQEvaluator, choose_backend, fixed_by
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.schemes import parse_scheme
from quantenv.sensitivity.curvature import GRADIENT_COST, PRODUCT_COST, Curvature
from quantenv.sensitivity.deviations import OUTPUT_KINDS, Deviation, Outputs, deviations, in_blocks
from quantenv.sensitivity.kinds import DEFAULT, PARTS, Progress, Sensitivity, Settings, harm
from quantenv.sensitivity.measurements import Measurements, measurement_path
from quantenv.sensitivity.output_fisher import OutputFisher
from quantenv.tasks import Task

#: Counted up when the numbers change for the same task and settings.
VERSION = 2
#: The split that everything is measured on. The test split is never used.
SPLIT = "search"
#: The name under which the outputs at 8 bits everywhere are kept.
BASE = "outputs at 8 bits"


def measure_network(
    subject: Task | PTQEvaluator, kind: str, settings: Settings, offered: np.ndarray | None, progress: Progress
) -> Sensitivity:
    """Measures a kind, or reads what was measured before; see `quantenv.sensitivity.measure`."""
    return _Measuring(subject, settings, offered, progress).sensitivity(kind)


def measured_outputs(evaluator: PTQEvaluator, settings: Settings, progress: Progress) -> dict[str, list[float]]:
    """Measures anew what the kinds accuracy, loss, kl and sqnr are made of at all bits, and keeps it nowhere.

    Returns:
        The measurements by name: what a prepared network brings under `identity_of` of the evaluator and settings.
    """
    with tempfile.TemporaryDirectory() as folder:
        measuring = _Measuring(evaluator, settings, None, progress, Path(folder) / "measured.json")
        measuring.sensitivity(DEFAULT)
        return measuring.results


def sensitivity_file(task: Task, settings: Settings) -> Path:
    """Returns the file in which a task's measurements by the default evaluator are kept."""
    return _file(task, identity_of(task, settings))


def identity_of(subject: Task | PTQEvaluator, settings: Settings) -> str:
    """Hashes what fixes the numbers: what fixes the evaluator's logits, the split, settings and this code's version."""
    if isinstance(subject, Task):
        task, backend = subject, choose_backend("auto", parse_scheme(subject.scheme).integer_obstacle)
    else:
        task, backend = subject.task, subject.backend
    return content_hash([str(VERSION), *fixed_by(task, backend), SPLIT, json.dumps(asdict(settings))])


def _file(task: Task, identity: str) -> Path:
    return measurement_path(task.name, task.scheme, SPLIT, identity)


@dataclass(frozen=True)
class _Step:
    """Something that is measured at once."""

    names: tuple[str, ...]
    """Names that its results are kept under."""
    measure: Callable[[], list[Any]]
    """Measures them."""


class _Measuring:
    """One task under fixed settings; evaluators are made only when something has to be measured."""

    def __init__(
        self,
        subject: Task | PTQEvaluator,
        settings: Settings,
        offered: np.ndarray | None,
        progress: Progress,
        path: Path | None = None,
    ) -> None:
        self._subject, self._settings, self._progress = subject, settings, progress
        self._task = subject if isinstance(subject, Task) else subject.task
        self._identity = identity_of(subject, settings)
        prepared = calibrate_task(self._task).prepared if path is None else None
        known = {} if prepared is None else prepared.about.sensitivities.get(self._identity, {})
        self._kept = Measurements(path or _file(self._task, self._identity), self._identity, known)
        self._layers = self._task.layers
        self._names = [layer.name for layer in self._layers]
        self._parts = parts_of(self._layers)
        shape = (len(PARTS), len(self._layers), MAX_BITS)
        self._wanted = deviations(self._layers, np.ones(shape, dtype=bool) if offered is None else offered)
        self._places = list(dict.fromkeys((each.layers, each.part) for each in self._wanted))
        sharing = {index: len(part) for part in self._parts for index in part}
        # Channel groups of a layer have the same activations, whose harm is divided evenly over them.
        self._sharing = np.array([[sharing[index]] for index in range(len(self._layers))])

    @cached_property
    def _evaluator(self) -> PTQEvaluator:
        return PTQEvaluator(self._subject) if isinstance(self._subject, Task) else self._subject

    @cached_property
    def _outputs(self) -> Outputs:
        return Outputs(self._evaluator, self._settings.images)

    @cached_property
    def _curvature(self) -> Curvature:
        return Curvature(self._task, self._settings)

    @cached_property
    def _output_fisher(self) -> OutputFisher:
        return OutputFisher(self._task, self._settings.gradient_images)

    @property
    def results(self) -> dict[str, Any]:
        """What was measured, by name."""
        return self._kept.results

    def sensitivity(self, kind: str) -> Sensitivity:
        if self._missing(kind):
            with self._kept.alone():
                missing = self._missing(kind)
                for done, step in enumerate(missing):
                    self._progress(done, len(missing), step.names[0])
                    self._kept.keep(step.names, step.measure())
                self._progress(len(missing), len(missing), kind)
        make = {"fisher": self._fisher, "hessian": self._hessian}.get(kind, self._deviating)
        weights, activations, evaluations, notes = make(kind)
        return Sensitivity(
            kind,
            harm(weights),
            harm(activations) / self._sharing,
            evaluations,
            content_hash([self._identity, kind]),
            notes,
        )

    def _missing(self, kind: str) -> list[_Step]:
        """Lists what has to be measured."""
        steps = [step for step in self._single_steps(kind) if step.names[0] not in self._kept]
        if kind in OUTPUT_KINDS:
            wanted = [each for each in self._wanted if self._kept_as(kind, each) not in self._kept]
            steps += [_Step(self._names_of(kind, block), partial(self._measure, block)) for block in in_blocks(wanted)]
        if kind == "fisher-output":
            wanted = [each for each in self._at_8_bits() if self._kept_as(kind, each) not in self._kept]
            if wanted:
                steps.append(_Step(self._names_of(kind, wanted), lambda: self._output_fisher.measure(wanted)))
        return steps

    def _single_steps(self, kind: str) -> list[_Step]:
        """Lists the steps of one result each, whatever is on offer."""
        if kind in OUTPUT_KINDS:
            return [_Step((BASE,), lambda: [self._outputs.base()])]
        if kind == "fisher":
            return [_Step(("fisher",), lambda: [self._curvature.fisher()])]
        if kind == "hessian":
            return [
                _Step(("perturbations",), lambda: [self._curvature.perturbations()]),
                *(
                    _Step((self._trace_name(layers[0], part),), partial(self._trace, layers[0], part))
                    for layers, part in self._places
                ),
            ]
        return []

    def _measure(self, block: list[Deviation]) -> list[list[float]]:
        return self._outputs.measure(block)

    def _trace(self, index: int, part: str) -> list[dict[str, Any]]:
        return [asdict(self._curvature.trace(index, part))]

    def _at_8_bits(self) -> list[Deviation]:
        """Returns the wanted deviations and, of what they deviate in, 8 bits, which harm is relative to."""
        return [*self._wanted, *(Deviation(layers, part, MAX_BITS) for layers, part in self._places)]

    def _kept_as(self, kind: str, deviation: Deviation) -> str:
        return f"{'outputs' if kind in OUTPUT_KINDS else kind}, {deviation.name(self._layers)}"

    def _names_of(self, kind: str, wanted: list[Deviation]) -> tuple[str, ...]:
        return tuple(self._kept_as(kind, each) for each in wanted)

    def _trace_name(self, index: int, part: str) -> str:
        name = self._names[index] if part == PARTS[0] else whole(self._layers[index]).name
        return f"trace of {part} of {name}"

    def _deviating(self, kind: str) -> tuple[np.ndarray, np.ndarray, float, tuple[str, ...]]:
        """Puts what deviations do into arrays, float64 (L, 8), NaN at bits that are not on offer."""
        raw = np.full((len(PARTS), len(self._layers), MAX_BITS), np.nan)
        if kind in OUTPUT_KINDS:
            position = OUTPUT_KINDS.index(kind)
            raw[:, :, MAX_BITS - 1] = self._kept[BASE][position]
            for each in self._wanted:
                result = self._kept[self._kept_as(kind, each)][position]
                raw[PARTS.index(each.part), list(each.layers), each.bits - 1] = result
            # every deviation, 8 bits everywhere and, for some kinds, the float network
            outputs = len(self._wanted) + 1 + (kind in ("kl", "sqnr"))
            return raw[0], raw[1], outputs * self._share(self._settings.images), ()
        raw[:, :, MAX_BITS - 1] = 0.0
        for each in self._at_8_bits():
            raw[PARTS.index(each.part), list(each.layers), each.bits - 1] = self._kept[self._kept_as(kind, each)]
        passes = GRADIENT_COST + len(self._at_8_bits()) / len(self._parts)  # a deviation is computed in one layer
        return raw[0], raw[1], passes * self._share(self._settings.gradient_images), ()

    def _fisher(self, kind: str) -> tuple[np.ndarray, np.ndarray, float, tuple[str, ...]]:
        weights, activations = (np.array(self._kept["fisher"][part]) for part in PARTS)
        cost = (GRADIENT_COST + 1) * self._share(self._settings.gradient_images)
        return weights, activations, cost, self._without_steps()

    def _hessian(self, kind: str) -> tuple[np.ndarray, np.ndarray, float, tuple[str, ...]]:
        perturbations = self._kept["perturbations"]
        measured = [self._kept[self._trace_name(layers[0], part)] for layers, part in self._places]
        positive = np.full((len(PARTS), len(self._names), 1), np.nan)
        for (layers, part), trace in zip(self._places, measured, strict=True):
            # A negative average curvature is no promise that coarse bits help: HAWQ-V2 argues at a minimum of the loss.
            positive[PARTS.index(part), list(layers)] = max(trace["mean"], 0.0)
        weights, activations = (
            traces * np.array(perturbations[part]) for traces, part in zip(positive, PARTS, strict=True)
        )
        probes = sum(trace["probes"] for trace in measured)
        cost = (PRODUCT_COST * probes + 1) * self._share(self._settings.gradient_images)
        return weights, activations, cost, (*self._unreached(measured), *self._without_steps())

    def _unreached(self, traces: list[dict[str, Any]]) -> tuple[str, ...]:
        missed = [trace for trace in traces if not trace["reached"]]
        if not missed:
            return ()
        worst = max(trace["standard_error"] / abs(trace["mean"]) if trace["mean"] else np.inf for trace in missed)
        return (
            f"{len(missed)} of {len(traces)} Hessian traces have a standard error above "
            f"{self._settings.relative_error:.0%} after {self._settings.probes} probes, {worst:.0%} at worst.",
        )

    def _without_steps(self) -> tuple[str, ...]:
        """Says where what is measured is of rounding alone, not of what the scheme does about it."""
        scheme = parse_scheme(self._task.scheme)
        if not (scheme.bias or scheme.batch_norm):
            return ()
        return (
            f"It is of rounding alone: what scheme {self._task.scheme!r} does after it, to biases or batch norms, is "
            "not in it.",
        )

    def _share(self, images: int | None) -> float:
        total = len(self._task.splits[SPLIT])
        return min(images or total, total) / total
