"""Quantenv in the race, through what users call: `quantenv.search`, and the post-training evaluator."""

from typing import Any

import torch

import quantenv
from experiments.studies.peers.job import BITS, Job
from experiments.studies.peers.networks import make_task
from experiments.studies.peers.processor_time import Phases
from quantenv.core.allocation import Allocation
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.tasks import Task

#: The agent of `episodes`: HAQ's.
AGENT = "ddpg"
ACTIVATION_BITS = 8
#: Nothing is fine-tuned after a search, so no recipe is checked before it.
NO_QAT = {"epochs": 0}


def run(job: Job, phases: Phases) -> dict[str, Any]:
    """Searches or evaluates.

    Args:
        job: What to do.
        phases: Receives what imports, data, search and evaluation took.

    Returns:
        The task's ``scheme``; for ``episodes`` nothing else, otherwise ``weight_bits``, the ``size`` of the weights in
        bytes, its ``ratio`` to 8 bits, and ``correct`` of ``samples`` on the test split.
    """
    torch.set_num_threads(1)
    search = quantenv.search  # which imports what it needs
    phases.end("imports")
    task = make_task(job)
    params = [layer.params for layer in task.layers]
    phases.end("data")
    if job.action == "episodes":
        by = "finetune-haq" if job.epochs else "ptq"
        search(task, agent=AGENT, evaluations=job.episodes, evaluator=by, store="off", qat=NO_QAT)
        phases.end("search")
        return {"scheme": task.scheme}
    if job.action == "mixed":
        assert job.ratio is not None
        found = search(task, agent="ilp", budget=job.ratio, bits=BITS, evaluations=1, store="off", qat=NO_QAT)
        assert found.best is not None
        allocation = found.best
        phases.end("search")
        (evaluation,) = found.setting.env.evaluator.evaluate([allocation], "test")
    else:
        allocation = _given(task, job)
        evaluator = PTQEvaluator(task)
        evaluator.network.settings([allocation])
        phases.end("search")
        (evaluation,) = evaluator.evaluate([allocation], "test")
    phases.end("evaluation")
    size = sum(count * bits for count, bits in zip(params, allocation.weight_bits, strict=True)) / 8
    return {
        "scheme": task.scheme,
        "weight_bits": list(allocation.weight_bits),
        "size": size,
        "ratio": size / sum(params),
        "correct": evaluation.correct,
        "samples": evaluation.samples,
    }


def _given(task: Task, job: Job) -> Allocation:
    bits = job.bits if job.weight_bits is None else list(job.weight_bits)
    assert bits is not None
    return Allocation.make(task.layers, bits, ACTIVATION_BITS, task.name, task.scheme)
