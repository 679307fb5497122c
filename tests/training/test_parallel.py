import os
import signal

import pytest
import torch

from quantenv.core.errors import QuantenvError
from quantenv.training.parallel import Processes, Share, check_processes


def fail(share, value):
    """In each process: reports, then the second process fails in its own way while the first one waits for it."""
    report = share.rows(10).start, share.processes, torch.get_num_threads()
    share.report((share.mean(torch.tensor(float(share.rank))), value, report))
    share.mean(torch.zeros(1))  # the first process has reported when both come here
    if share.rank == 1:
        if value < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        raise QuantenvError("It cannot be done.")
    share.mean(torch.zeros(1))


@pytest.mark.parametrize(("value", "sentence"), [(3.0, "^It cannot be done.$"), (-3.0, "Process 2 of 2 .* by SIGKILL")])
def test_what_fails_first_is_the_one_error(value, sentence):
    with Processes(fail, [torch.tensor(value)], 2, "cpu") as processes:
        mean, sent, where = processes.next(lambda: None)
        assert (mean, sent) == (0.5, value)
        assert where == (0, 2, torch.get_num_threads())
        with pytest.raises(QuantenvError, match=sentence):
            processes.next(lambda: None)
    assert all(not process.is_alive() for process in processes._processes)


def test_one_process_has_all_of_it():
    share = Share()
    assert list(range(10))[share.rows(10)] == list(range(10))
    network, value = torch.nn.Linear(1, 1), torch.tensor(3.0)
    assert share.prepare(network) is network
    assert share.mean(value) is value


def test_what_cannot_be_sent_is_a_clear_error():
    with pytest.raises(QuantenvError, match="a class that a module defines"), Processes(fail, [lambda: 0], 2, "cpu"):
        pass


def test_accelerate_is_asked_for_only_where_it_is_needed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_processes(1, "cpu")
    with pytest.raises(QuantenvError, match=r"quantenv\[accelerate\]"):
        check_processes(2, "cpu")


@pytest.mark.parametrize(
    ("gpus", "compute", "sentence"),
    [(0, "cuda", "no GPU here"), (1, "cuda", "only 1 GPUs"), (0, "tpu", "expected cpu or cuda")],
)
def test_devices_that_are_not_here_are_refused(monkeypatch, gpus, compute, sentence):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(QuantenvError, match=sentence):
        check_processes(2, compute)
