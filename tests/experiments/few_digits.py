"""The digits task with few images: what a test asserts of a whole run holds on them as well, many times sooner."""

from quantenv.tasks import Split, Task, get_task

TASK = "tests.experiments.few_digits:make_task"
#: Images of each split; calibration is the first part of train.
COUNTS = {"train": 64, "calibration": 32, "search": 48, "test": 48}


def make_task() -> Task:
    whole = get_task("digits")
    splits = {name: Split(whole.splits[name].inputs[:n], whole.splits[name].labels[:n]) for name, n in COUNTS.items()}
    return Task("digits", whole.network, splits)
