"""The digits task for tests: on few images, where what is asserted holds as well and sooner, or under other schemes."""

import dataclasses
import functools
from collections.abc import Mapping

from quantenv.evaluation.preparing import bringing, make_prepared
from quantenv.quantization.prepared import PreparedNetwork
from quantenv.tasks import Split, Task, get_task
from quantenv.tasks.digits import DigitsNet, digits_splits
from quantenv.tasks.shipped import shipped_network

#: `few_digits_task` and `few_digits_of_any_scheme` as names of tasks, for commands.
FEW_DIGITS = "tests.digits:few_digits_task"
ANY_SCHEME = "tests.digits:few_digits_of_any_scheme"
#: Images of its splits. A batch of fine-tuning has 32: an epoch has five steps.
SEARCHED = {"train": 160, "calibration": 32, "search": 64, "test": 64}
#: Images for fine-tuning alone. Of calibration all are kept: the prepared network that ships was made from them.
TRAINED = {"train": 256, "search": 200, "test": 100}


@functools.cache
def digits_under(scheme: str) -> Task:
    """Returns the task under another scheme; each is prepared once for all tests of a process."""
    return dataclasses.replace(get_task("digits"), scheme=scheme)


def few_digits_task() -> Task:
    """Makes a task to be searched, which brings its prepared network along."""
    return bringing(few_digits_of_any_scheme(), _prepared())


def few_digits_of_any_scheme() -> Task:
    """Makes the same task without what was prepared under its scheme."""
    return Task("digits", shipped_network("digits", DigitsNet), _cut(digits_splits(), SEARCHED))


@functools.cache
def _prepared() -> PreparedNetwork:
    return make_prepared(few_digits_of_any_scheme())


def few_digits(scheme: str | None = None) -> Task:
    """Returns a task to be trained, under its own scheme or another."""
    task = get_task("digits")
    return dataclasses.replace(task, splits=_cut(task.splits, TRAINED), scheme=scheme or task.scheme)


def _cut(splits: Mapping[str, Split], counts: Mapping[str, int]) -> dict[str, Split]:
    whole = dict(splits)
    for name, count in counts.items():
        whole[name] = Split(whole[name].inputs[:count].clone(), whole[name].labels[:count].clone())
    return whole
