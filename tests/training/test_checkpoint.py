"""An interrupted fine-tuning goes on as if nothing had happened, to the bit."""

import pytest
import torch

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import read_tensors, write_tensors
from quantenv.tasks import get_task
from quantenv.training import FinetuneConfig, finetune
from quantenv.training.checkpoint import FORMAT

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
    path = tmp_path / "made" / "checkpoint.safetensors"
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
    path = tmp_path / "checkpoint.safetensors"
    assert_same(run(task, allocation, path=path), whole)
    assert_same(run(task, allocation, path=path, between_steps=Stopper(1)), whole)


def test_that_of_another_recipe_or_allocation_is_not_taken_over(task, allocation, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    short = FinetuneConfig(epochs=0)
    run(task, allocation, FinetuneConfig(epochs=0, seed=1), path)
    written = path.read_bytes()
    run(task, allocation, short, path)
    assert path.read_bytes() != written
    other = Allocation.make(task.layers, 5)
    assert_same(run(task, other, short, path), run(task, other, short))


@pytest.fixture(scope="module")
def interrupted(task, allocation, tmp_path_factory):
    """The checkpoint of a fine-tuning that was stopped within its first epoch."""
    path = tmp_path_factory.mktemp("interrupted") / "checkpoint.safetensors"
    with pytest.raises(Stop):
        run(task, allocation, path=path, between_steps=Stopper(3))
    return path


def test_a_damaged_one_is_refused(task, allocation, interrupted, tmp_path):
    path, content = tmp_path / "checkpoint.safetensors", interrupted.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (b"", b"nothing of the kind", content[:-1], content + b" ", flipped):
        path.write_bytes(damaged)
        with pytest.raises(QuantenvError, match="Delete it to start over"):
            run(task, allocation, path=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda numbers, tensors: numbers.update(step=99), "at step 99 of an epoch of 28"),
        (lambda numbers, tensors: numbers.update(step=-1), "step"),
        (lambda numbers, tensors: numbers.update(step=True), "step"),
        (lambda numbers, tensors: numbers.update(epoch=2), "at epoch 2 and tells of 1"),
        (lambda numbers, tensors: numbers.update(best_epoch=7), "at epoch 1"),
        (lambda numbers, tensors: numbers.update(total=None), "total"),
        (lambda numbers, tensors: numbers.update(more=1), "more"),
        (lambda numbers, tensors: numbers.pop("history"), "history"),
        (lambda numbers, tensors: numbers.update(rates=[0.1]), "1 learning rates"),
        (lambda numbers, tensors: numbers["schedule"].update(last_epoch="x"), "schedule"),
        (lambda numbers, tensors: numbers["schedule"].clear(), "schedule"),
        (lambda numbers, tensors: numbers["best"].update(correct=1.5), "correct"),
        (lambda numbers, tensors: tensors.pop("draws/order"), "'order'"),
        (lambda numbers, tensors: tensors.update({"draws/order": torch.zeros(5, dtype=torch.int64)}), "order"),
        (lambda numbers, tensors: tensors.update({"draws/order": tensors["draws/order"] + 900}), "has not"),
        (lambda numbers, tensors: tensors["draws/generator"].fill_(255), "generator"),
        (lambda numbers, tensors: tensors.update({"momentum/9999": torch.zeros(1)}), "'9999'"),
        (lambda numbers, tensors: tensors.update({"momentum/x": torch.zeros(1)}), "'x'"),
        (lambda numbers, tensors: tensors.update({"momentum/0": torch.zeros(1)}), "'0'"),
        (lambda numbers, tensors: tensors.update({"other/0": torch.zeros(1)}), "unknown 'other/0'"),
        (lambda numbers, tensors: [tensors.pop(name) for name in [*tensors] if name[:4] == "best"], "best"),
        (lambda numbers, tensors: [tensors.pop(name) for name in [*tensors] if name[:4] == "aver"], "average"),
    ],
)
def test_one_that_does_not_fit_is_refused(task, allocation, interrupted, tmp_path, change, message):
    numbers, tensors = read_tensors(interrupted, FORMAT, "", "")
    change(numbers, tensors)
    write_tensors(tmp_path / "checkpoint", FORMAT, numbers, tensors)
    with pytest.raises(QuantenvError, match=f"no sound checkpoint of this fine-tuning: .*{message}"):
        run(task, allocation, path=tmp_path / "checkpoint")
