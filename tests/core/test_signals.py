import signal
import subprocess
import sys

import pytest

from quantenv.core.signals import blocked

BLOCKED = "import signal; print(*(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])))"


def blocked_in_child():
    child = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    return set(map(int, child.stdout.split()))


def test_what_is_started_within_never_receives_the_signals():
    with blocked(signal.SIGINT, signal.SIGTERM):
        assert blocked_in_child() == {signal.SIGINT, signal.SIGTERM}
        with blocked(signal.SIGINT):
            assert blocked_in_child() == {signal.SIGINT, signal.SIGTERM}
    assert blocked_in_child() == set()


def test_they_are_let_through_again_after_an_error():
    with pytest.raises(KeyError), blocked(signal.SIGINT):
        raise KeyError
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
