"""What holds for every test: one thread, and no store but those that a test makes.

Tests run beside each other, and threads that wait for each other take all the time. With the store off, evaluations
are computed, not remembered, and nothing is written to the user's data directory, by subprocesses neither.
"""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_store() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTENV_STORE", "off")
        yield
