"""An interrupted fine-tuning goes on as if nothing had happened, to the bit."""

import pytest
import torch

from quantenv.allocation import Allocation
from quantenv.errors import QuantenvError
from quantenv.finetune import FinetuneConfig, finetune
from quantenv.tasks import get_task

#: Everything that has a state of its own: momentum, schedule, moving average, the order, and its draws.
RECIPE = FinetuneConfig(epochs=3, ema=0.9, crop=1, flip=True)


class Stop(BaseException):
    """What a signal raises."""


class Stopper:
    """Raises at the n-th call, of a step or an epoch."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.at:
            raise Stop


@pytest.fixture(scope="module")
def task():
    return get_task("digits")


@pytest.fixture(scope="module")
def allocation(task):
    return Allocation.make(task.layers, 3)


def run(task, allocation, recipe=RECIPE, path=None, **options):
    reported = []
    result = finetune(
        task, allocation, recipe, lambda epoch, metrics: reported.append((epoch, dict(metrics))), path, **options
    )
    return result, reported


@pytest.fixture(scope="module")
def whole(task, allocation):
    return run(task, allocation)


def assert_same(ours, theirs):
    (result, reported), (expected, expected_reported) = ours, theirs
    assert (result.search, result.best_epoch, reported) == (expected.search, expected.best_epoch, expected_reported)
    assert all(torch.equal(result.state[key], expected.state[key]) for key in expected.state)


def test_interruptions_at_steps_and_epochs_change_no_bit_and_repeat_nothing(task, allocation, whole, tmp_path):
    path = tmp_path / "made" / "checkpoint.pt"
    steps = 0
    for at in (5, 30):  # within an epoch, and within the next
        stopper = Stopper(at)
        with pytest.raises(Stop):
            run(task, allocation, path=path, between_steps=stopper)
        steps += stopper.calls
    counter = Stopper(0)
    with pytest.raises(Stop):
        finetune(task, allocation, RECIPE, Stopper(3), path, counter)  # at the end of epoch 2; 0 and 1 come first
    steps += counter.calls
    counter = Stopper(0)
    assert_same(run(task, allocation, path=path, between_steps=counter), whole)
    assert steps + counter.calls == 3 * (897 // 32)


def test_a_finished_one_is_taken_over_without_a_step(task, allocation, whole, tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert_same(run(task, allocation, path=path), whole)
    assert_same(run(task, allocation, path=path, between_steps=Stopper(1)), whole)


def test_that_of_another_recipe_or_allocation_is_not_taken_over(task, allocation, tmp_path):
    path = tmp_path / "checkpoint.pt"
    short = FinetuneConfig(epochs=0)
    run(task, allocation, FinetuneConfig(epochs=0, seed=1), path)
    written = path.read_bytes()
    run(task, allocation, short, path)
    assert path.read_bytes() != written
    other = Allocation.make(task.layers, 5)
    assert_same(run(task, other, short, path), run(task, other, short))


def test_a_damaged_one_is_refused(task, allocation, tmp_path):
    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"nothing of the kind"):
        path.write_bytes(content)
        with pytest.raises(QuantenvError, match="delete it to start over"):
            run(task, allocation, FinetuneConfig(epochs=0), path)
