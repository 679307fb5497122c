import dataclasses

import pytest
import torch

from experiments.studies.peers import efficientnet, networks
from experiments.studies.peers.job import Job
from quantenv.core.errors import QuantenvError
from quantenv.tasks import Split, get_task


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randn(24, 3, 32, 32, generator=generator), torch.arange(24) % 10)


def test_the_efficientnet_like_network_is_trained_once_and_kept(tmp_path, monkeypatch, images):
    monkeypatch.setattr(efficientnet, "EPOCHS", 1)
    monkeypatch.setattr(efficientnet, "BATCH", 8)
    state = torch.get_rng_state()
    path = efficientnet.trained_weights(tmp_path / "weights.pt", images)
    assert torch.equal(torch.get_rng_state(), state)
    kept = path.read_bytes()
    assert efficientnet.trained_weights(path, images).read_bytes() == kept
    network = efficientnet.EfficientNet()
    initial = network.stem[0].weight.clone()
    network.load_state_dict(torch.load(path, weights_only=True))
    assert not torch.equal(network.stem[0].weight, initial)
    assert network.eval()(images.inputs).shape == (24, 10)
    assert 180_000 < sum(parameter.numel() for parameter in network.parameters()) < 190_000


def test_searches_on_many_images_take_training_images_and_leave_them_out_of_training(monkeypatch):
    task = get_task("digits")
    monkeypatch.setattr(networks, "get_task", lambda name: task)
    made = networks.make_task(Job("haq", "episodes", "resnet20", images=100, scheme=None))
    sizes = {name: len(split) for name, split in made.splits.items()}
    assert sizes == {
        **{name: len(split) for name, split in task.splits.items()},
        "search": 100,
        "train": len(task.splits["train"]) - 100,
    }
    same = networks.make_task(Job("haq", "episodes", "resnet20", images=len(task.splits["search"])))
    assert same is task


def test_the_scheme_is_the_jobs(monkeypatch):
    task = get_task("digits")
    monkeypatch.setattr(networks, "get_task", lambda name: task)
    made = networks.make_task(Job("quantenv", "uniform", "resnet20", bits=4, scheme="linear+bias"))
    assert made.scheme == "linear+bias"
    assert dataclasses.replace(made, scheme=task.scheme).identity == task.identity


def test_an_unknown_network_is_refused():
    with pytest.raises(QuantenvError, match=r"'alexnet'.*resnet20"):
        networks.make_task(Job("mct", "mixed", "alexnet", ratio=0.5))
