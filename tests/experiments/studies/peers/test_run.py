import subprocess
import sys
import time

import pytest

from experiments.studies.peers import haq, mct, own
from experiments.studies.peers.job import Job
from experiments.studies.peers.processor_time import Phases, processor_seconds
from experiments.studies.peers.run import in_process
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.evaluation.post_training import PTQEvaluator
from quantenv.tasks import get_task
from quantenv.tasks.resnet20 import DATA_VARIABLE


@pytest.fixture(scope="module")
def task():
    """Stands in for ResNet-20, whose data do not ship."""
    return get_task("digits")


def test_processor_time_is_that_of_children_too():
    program = "import time\nwhile time.process_time() < 0.3: pass"
    before = processor_seconds(), time.process_time()
    subprocess.run([sys.executable, "-c", program], check=True)
    assert processor_seconds() - before[0] >= 0.3 > time.process_time() - before[1]


def test_phases_add_up_to_the_whole_process():
    phases = Phases()
    for phase in ("imports", "search", "imports"):
        phases.end(phase)
    assert list(phases.seconds) == ["imports", "search"]
    assert 0 < sum(phases.seconds.values()) <= processor_seconds()


def test_a_process_that_fails_is_told_of_in_its_own_words(monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(QuantenvError, match=f"haq episodes resnet20 failed: .*set {DATA_VARIABLE}"):
        in_process(Job("haq", "episodes", "resnet20"))


def test_without_mct_its_extra_and_target_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "model_compression_toolkit", None)
    with pytest.raises(QuantenvError, match=r"make bench-peers.*extra 'peers'"):
        mct.run(Job("mct", "mixed", "resnet20", ratio=0.5), Phases())


def test_ours_finds_what_fits_and_evaluates_it_on_the_test_split(task, monkeypatch):
    monkeypatch.setattr(own, "make_task", lambda job: task)
    phases = Phases()
    found = own.run(Job("quantenv", "mixed", "digits", ratio=0.5), phases)
    assert list(phases.seconds) == ["imports", "data", "search", "evaluation"]
    assert found["ratio"] == pytest.approx(found["size"] / sum(layer.params for layer in task.layers))
    assert 0.3 < found["ratio"] <= 0.5
    allocation = Allocation.make(task.layers, found["weight_bits"], 8)
    (expected,) = PTQEvaluator(task).evaluate([allocation], "test")
    assert (found["correct"], found["samples"]) == (expected.correct, expected.samples)
    given = Job("quantenv", "evaluate", "digits", weight_bits=tuple(found["weight_bits"]))
    assert own.run(given, Phases()) == found


def test_haqs_episode_clusters_trains_and_begins_anew(task):
    network = haq.ClusteredNetwork(task)
    bits = [2, 3, 4, 5, 6, 7, 8, 1]

    def weights():
        return [network._network.get_submodule(layer.name).weight.detach().clone() for layer in task.layers]

    network.reload(bits)
    first = weights()
    accuracy = network.accuracy(task.splits["search"])
    for weight, layer, number in zip(first, task.layers, bits, strict=True):
        values, original = weight.unique(), task.network.get_submodule(layer.name).weight.detach()
        assert len(values) <= 2**number
        # Each centroid is the mean of its cluster.
        assert all(original[weight == value].mean() == pytest.approx(float(value), abs=1e-5) for value in values)
    network.fine_tune(task.splits["train"])
    trained = weights()
    assert any((one != other).any() for one, other in zip(first, trained, strict=True))
    assert all(len(weight.unique()) <= 2**number for weight, number in zip(trained, bits, strict=True))
    network.reload(bits)
    assert all((one == other).all() for one, other in zip(first, weights(), strict=True))
    assert network.accuracy(task.splits["search"]) == accuracy
