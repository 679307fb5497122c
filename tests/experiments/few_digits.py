"""The digits task with few images: what a test asserts of a whole run holds on them as well, and sooner."""

from quantenv.tasks import Split, Task
from quantenv.tasks.digits import DigitsNet, digits_splits
from quantenv.tasks.shipped import shipped_network

FEW_DIGITS = "tests.experiments.few_digits:make_task"
#: Images of the splits. A batch of fine-tuning has 32: an epoch has five steps.
COUNTS = {"train": 160, "calibration": 32, "search": 64, "test": 64}


def make_task() -> Task:
    whole = digits_splits()
    splits = {name: Split(whole[name].inputs[:n], whole[name].labels[:n]) for name, n in COUNTS.items()}
    return Task("digits", shipped_network("digits", DigitsNet), splits)
