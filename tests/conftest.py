"""What holds for every test: one thread, and no store but those that a test makes.

Tests run beside each other, and threads that wait for each other take all the time. With the store off, evaluations
are computed, not remembered, and nothing is written to the user's data directory, by subprocesses neither.
"""

from collections.abc import Iterator

import pytest
import torch

from tests.clients.installed import summary

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_store() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTENV_STORE", "off")
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which clients were tested where all tests were to run, or theirs."""
    arguments = [argument.rstrip("/") for argument in terminalreporter.config.args]
    if any(argument.endswith(("tests", "clients")) or "tests/clients" in argument for argument in arguments):
        for line in summary():
            terminalreporter.write_line(line)
