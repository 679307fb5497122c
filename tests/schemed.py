"""The digits task under other schemes: each is prepared once for all tests of a process."""

import dataclasses
import functools

from quantenv.tasks import Task, get_task


@functools.cache
def digits_under(scheme: str) -> Task:
    return dataclasses.replace(get_task("digits"), scheme=scheme)
