"""The tasks that the benchmarks run on: those whose data are at hand; of ResNet-20 stand-ins elsewhere."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import torch

from experiments.options.console import announcements
from quantenv.core.errors import QuantenvError
from quantenv.tasks import Split, Task, get_task
from quantenv.tasks.digits import digits_splits
from quantenv.tasks.resnet20 import DATA_VARIABLE, GROUPS, ResNet20
from quantenv.training.fit import TrainingRecipe, train_float

#: What takes the stand-in to 90-95% accuracy, in seconds.
RECIPE = TrainingRecipe(epochs=4, batch_size=32, learning_rate=0.01, seed=0)
#: Height and width of random images, and how many of them each split has whose images are not counted.
SIZE, OTHERS = 32, 64


def tasks_at_hand(names: Sequence[str]) -> tuple[list[Task], list[str]]:
    """Returns the tasks that can be made here, and for each other one a note for the results; it is announced, too."""
    tasks, notes = [], []
    for name in names:
        try:
            tasks.append(get_task(name))
        except QuantenvError as error:
            announcements().print(f"{name} is left out: {error}", markup=False)
            notes.append(f"{name} was left out: its data were not at hand.")
    return tasks, notes


def has_data() -> bool:
    """Whether the folder of the real task's data is named."""
    return bool(os.environ.get(DATA_VARIABLE))


@functools.cache
def timed_resnet20(images: int) -> Task:
    """Returns ResNet-20 with so many images in its search split, to be timed.

    It is the real task where its data are; otherwise weights and images are random, of the same shapes. Times do not
    depend on what a network has learnt.
    """
    return _first_images(get_task("resnet20"), images) if has_data() else random_resnet20(images)


def trained_resnet20(images: int) -> Task:
    """Returns ResNet-20 with so many images in its search split and weights that were trained.

    It is the real task where its data are; otherwise the network is trained on scikit-learn's digits, here and now.
    """
    return _first_images(get_task("resnet20") if has_data() else digits_resnet20(), images)


def random_resnet20(images: int) -> Task:
    """Makes a ResNet-20 with random weights and random images."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNet20()
    sizes = {"train": OTHERS, "calibration": OTHERS, "search": images, "test": OTHERS}
    splits = {
        name: Split(
            torch.randn(size, 3, SIZE, SIZE, generator=generator), torch.randint(0, 10, (size,), generator=generator)
        )
        for name, size in sizes.items()
    }
    return Task("resnet20", network, splits, source="random weights and images", tied=GROUPS)


def digits_resnet20() -> Task:
    """Makes a ResNet-20 trained for some seconds on scikit-learn's digits, three equal channels of 8x8."""
    splits = {
        name: Split(split.inputs.expand(-1, 3, -1, -1).contiguous(), split.labels)
        for name, split in digits_splits().items()
    }
    network = train_float(ResNet20, splits["train"], RECIPE)
    return Task("resnet20", network, splits, source="trained on scikit-learn's digits for this", tied=GROUPS)


def source(task: Task) -> str:
    """Returns in a few words where a task's weights and images come from."""
    return task.source.partition(":")[0].rstrip(".")


def _first_images(task: Task, images: int) -> Task:
    search = task.splits["search"]
    # Of the other splits only what calibrates is needed.
    splits = {
        "train": Split(*(part[:1] for part in (task.splits["train"].inputs, task.splits["train"].labels))),
        "calibration": task.splits["calibration"],
        "search": Split(search.inputs[:images].contiguous(), search.labels[:images]),
        "test": task.splits["test"],
    }
    return dataclasses.replace(task, splits=splits)
