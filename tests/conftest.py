"""What holds for every test: one thread, no clock, and no store but those that a test makes.

Tests run beside each other, and threads that wait for each other take all the time. With the store off, evaluations
are computed, not remembered, and nothing is written to the user's data directory, by subprocesses neither.

`--fast` leaves out what takes long, `--record-slow` finds out what does: see `selection`.
"""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import selection
from tests.clients.installed import summary

torch.set_num_threads(1)
# How fast a property is checked says only how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def no_store() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTENV_STORE", "off")
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out the tests that take long: tests/slow.txt")
    parser.addoption("--record-slow", action="store_true", help="write tests/slow.txt: which tests take long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        slow = selection.listed()
        left_out = [item for item in items if selection.function_of(item.nodeid) in slow]
        items[:] = [item for item in items if selection.function_of(item.nodeid) not in slow]
        config.hook.pytest_deselected(items=left_out)


class Recorder:
    """Measures every test where it runs, and sums up where the whole run is reported: with xdist another process."""

    def __init__(self) -> None:
        self.seconds, self.shared = selection.Seconds(), 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        before = selection.clock()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                self.shared += selection.clock() - before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self.shared, self.begin = 0.0, selection.clock()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        try:
            return (yield)
        finally:
            item.user_properties.append(("seconds", (selection.clock() - self.begin - self.shared, self.shared)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.seconds.add(report.nodeid, *dict(report.user_properties)["seconds"])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            selection.write(self.seconds.slow())


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-slow"):
        config.pluginmanager.register(Recorder())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which clients were tested where all tests were to run, or theirs."""
    arguments = [argument.rstrip("/") for argument in terminalreporter.config.args]
    if any(argument.endswith(("tests", "clients")) or "tests/clients" in argument for argument in arguments):
        for line in summary():
            terminalreporter.write_line(line)
