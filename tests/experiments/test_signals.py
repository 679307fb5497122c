import signal

import pytest

from experiments.signals import GracefulStop, Interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_takes_effect_at_the_next_check(number, code):
    before = signal.getsignal(number)
    with GracefulStop() as stop:
        stop.check("any", "arguments")
        signal.raise_signal(number)
        with pytest.raises(Interrupted) as interruption:
            stop.check()
    assert interruption.value.exit_code == code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_acts_at_once():
    with GracefulStop() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as interruption:
            signal.raise_signal(signal.SIGINT)
        assert not isinstance(interruption.value, Interrupted)
        with pytest.raises(Interrupted):
            stop.check()


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), GracefulStop():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before
