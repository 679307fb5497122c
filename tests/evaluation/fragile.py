"""What tests of worker pools send to workers: evaluators that note who computed what, and fail where a test wants it.

It imports no torch, and SQLAlchemy only where there is a store, so that workers start quickly.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from tests.synthetic import AdditiveEvaluator

#: Weight bits of the first layer that ask for a failure; others never have them here.
POISON = 1


class FragileEvaluator(AdditiveEvaluator):
    """Notes the process of every evaluation in a folder. Allocations with `POISON` in front fail.

    Args:
        folder: Where notes are kept.
        deaths: How many times a poisoned allocation kills its process before it is evaluated at last.
        error: Raised for poisoned allocations instead.
        pause: Seconds that each evaluation takes.
    """

    def __init__(self, folder, deaths=0, error=None, pause=0.0):
        super().__init__()
        self.folder, self.deaths, self.error, self.pause = Path(folder), deaths, error, pause

    def evaluate(self, allocations, split="search"):
        results = []
        for allocation in allocations:
            time.sleep(self.pause)
            if allocation.weight_bits[0] == POISON:
                if self.error is not None:
                    raise self.error
                if len(list(self.folder.glob("death-*"))) < self.deaths:
                    (self.folder / f"death-{os.getpid()}").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            (self.folder / f"evaluation-{os.getpid()}-{time.monotonic_ns()}").touch()
            results += super().evaluate([allocation], split)
        return results


def fragile(**settings):
    return FragileEvaluator(**settings)


def stored_fragile(location, **settings):
    from quantenv.evaluation.store.store import EvaluationStore
    from quantenv.evaluation.store.stored import StoredEvaluator

    return StoredEvaluator(fragile(**settings), EvaluationStore(location))


def additive(_):
    return AdditiveEvaluator()


def one_of_a_kind():
    evaluator = AdditiveEvaluator()
    evaluator.identity = str(os.getpid())
    return evaluator


def dies():
    os._exit(1)


def refuses(evaluator):
    raise QuantenvError("the disk is full")


def threads_of(evaluator):
    """The process, torch's threads, and those in the environment."""
    import torch

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return os.getpid(), torch.get_num_threads(), *(os.environ[name] for name in names)


def evaluations(folder, process="*"):
    return len(list(Path(folder).glob(f"evaluation-{process}-*")))


def deaths(folder):
    return len(list(Path(folder).glob("death-*")))


def batch(layers, count=40, poisoned=(), seed=0):
    """Draws different allocations with at least 2 bits; those of the given indices are poisoned."""
    rng = np.random.default_rng(seed)
    weights, activations = rng.integers(2, 9, (2, count, len(layers)))
    weights[list(poisoned), 0] = POISON
    return [Allocation.make(layers, w.tolist(), a.tolist()) for w, a in zip(weights, activations, strict=True)]
