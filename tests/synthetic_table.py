"""Evaluation tables of the synthetic additive task, made by evaluating every allocation."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from quantenv.core.activations import chain
from quantenv.core.allocation import Allocation
from quantenv.evaluation.base import Evaluation
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from tests.synthetic import AdditiveEvaluator, synthetic_layers

BITS = (2, 4, 8)


def synthetic_table(
    count: int = 4,
    bits: Sequence[int] = BITS,
    groups: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    samples: int = 1000,
    **changes: Any,
) -> EvaluationTable:
    """Evaluates all allocations of `count` layers; `groups` are layer indices, all of them, by default one each.

    The test split's counts and losses are the search split's with noise, so that the two disagree; few samples make
    ties in accuracy common.
    """
    evaluator = AdditiveEvaluator(synthetic_layers(count, seed), seed)
    groups = [[index] for index in range(count)] if groups is None else groups
    correct, loss = [], []
    for options in itertools.product(bits, repeat=len(groups)):
        weights = np.zeros(count, dtype=int)
        for option, group in zip(options, groups, strict=True):
            weights[list(group)] = option
        [evaluation] = evaluator.evaluate([Allocation.make(evaluator.layers, weights.tolist())])
        correct.append(round(evaluation.accuracy * samples))
        loss.append(evaluation.loss)
    rng = np.random.default_rng(seed)
    noise = rng.integers(-3, 4, len(correct))
    fields: dict[str, Any] = {
        "name": "synthetic_table",
        "task": "synthetic",
        "task_identity": "0" * 16,
        "scheme": "linear",
        "evaluator_identity": evaluator.identity,
        "layers": evaluator.layers,
        "activations": chain(evaluator.layers),
        "groups": [[evaluator.layers[index].name for index in group] for group in groups],
        "bits": tuple(bits),
        "activation_bits": 8,
        "reference": {
            "search": Evaluation(round(0.96 * samples), samples, 0.1),
            "test": Evaluation(round(0.95 * samples), samples, 0.125),
        },
        "correct": {
            "search": np.array(correct, dtype=np.uint16),
            "test": np.clip(np.array(correct) + noise, 0, samples).astype(np.uint16),
        },
        "loss": {
            "search": np.round(loss, 6),
            "test": np.round(np.array(loss) * rng.uniform(0.9, 1.1, len(loss)), 6),
        },
        "sensitivity": np.array(evaluator.sensitivity),
        "provenance": {"command": "tests"},
    }
    return EvaluationTable(**{**fields, **changes})
