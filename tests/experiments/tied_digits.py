"""Digits with few images and tied layers: a table of them has sixteen rows."""

import dataclasses

from quantenv.tasks import Task
from tests.digits import few_digits_task

TASK = "tests.experiments.tied_digits:make_task"


def make_task() -> Task:
    task = few_digits_task()
    names = [layer.name for layer in task.layers]
    return dataclasses.replace(task, tied=tuple(tuple(names[first : first + 2]) for first in range(0, len(names), 2)))
