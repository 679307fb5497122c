import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.tasks import task_from_datasets
from tests.networks import branched


def data(count, seed, size=16):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 3, size, size, generator=generator), torch.randint(5, (count,), generator=generator)
    )


def rows(split):
    return [image.numpy().tobytes() for image in split.inputs]


def test_an_episode_on_your_own_network_and_data():
    task = task_from_datasets(branched(), data(40, 0), data(30, 1))
    env = QuantizationEnv(task, metric="size", budget=0.5)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(0)
    assert info["feasible"]
    assert env.evaluator.reference.samples == 15


def test_rewards_and_reports_are_on_what_was_held_out():
    train, held_out = data(40, 0), data(30, 1)
    task = task_from_datasets(branched(), train, held_out, calibration_samples=8, search_samples=10)
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 40,
        "calibration": 8,
        "search": 10,
        "test": 20,
    }
    assert set(rows(task.splits["search"])) | set(rows(task.splits["test"])) == {
        x.numpy().tobytes() for x, _ in held_out
    }
    assert set(rows(task.splits["train"])) == {x.numpy().tobytes() for x, _ in train}
    labels = {x.numpy().tobytes(): int(y) for x, y in held_out}
    search = task.splits["search"]
    assert [labels[row] for row in rows(search)] == search.labels.tolist()


def test_the_identity_is_that_of_the_content():
    first, again, other = (task_from_datasets(branched(), data(20, 0), data(10, 1), seed=seed) for seed in (0, 0, 1))
    assert first.identity == again.identity != other.identity
    assert task_from_datasets(branched(), data(20, 0), data(10, 2)).identity != first.identity


def test_numbers_of_samples_can_be_bounded():
    task = task_from_datasets(branched(), data(40, 0), data(30, 1), train_samples=12, search_samples=5, test_samples=7)
    assert [len(task.splits[name]) for name in ("train", "calibration", "search", "test")] == [12, 12, 5, 7]


def test_what_occurs_twice_is_kept_once_and_held_out():
    train, held_out = data(40, 0), data(30, 1)
    train.tensors[0][:4] = held_out.tensors[0][:4]
    held_out.tensors[0][29] = held_out.tensors[0][28]
    task = task_from_datasets(branched(), train, held_out)
    assert len(task.splits["train"]) == 36
    assert len(task.splits["search"]) + len(task.splits["test"]) == 29


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


class Words:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return "word", 0


class Growing(Words):
    def __getitem__(self, index):
        return torch.zeros(3, 16, 16 + index), 0


@pytest.mark.parametrize(
    ("train", "held_out", "options", "sentence"),
    [
        (Stream(), data(4, 1), {}, "train .* has no length"),
        (data(4, 0), Words(), {}, "is a str, not a tensor"),
        (data(4, 0), Growing(), {"search_samples": 1}, "differ in shape"),
        (data(4, 0), data(1, 1), {}, "has one sample"),
        (data(4, 0), data(4, 0), {}, "occur elsewhere"),
        (data(4, 0), data(4, 1), {"search_samples": 0}, "search_samples is 0"),
        (TensorDataset(torch.zeros(0, 3), torch.zeros(0)), data(4, 1), {}, "train is empty"),
    ],
)
def test_mistakes_are_clear(train, held_out, options, sentence):
    with pytest.raises(QuantenvError, match=sentence):
        task_from_datasets(branched(), train, held_out, **options)
