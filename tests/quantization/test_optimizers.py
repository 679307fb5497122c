"""Optimizers without torch's compiler compute what torch's own do."""

import copy
import functools
import sys

import pytest
import torch

from quantenv.quantization import optimizers

KINDS = {
    "Adam": {"lr": 0.1, "fused": True},
    "AdamW": {"lr": 0.1, "weight_decay": 0.1},
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
}


def trained(kind, options):
    """Weights and the optimizer's state after steps, of which the last is taken by one that went on from the state."""
    network = torch.nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.copy_(torch.arange(6).reshape(2, 3))
        network.bias.zero_()
    optimizer = kind(network.parameters(), **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for step in range(3):
        if step == 2:
            state, optimizer = copy.deepcopy(optimizer.state_dict()), kind(network.parameters(), **options)
            optimizer.load_state_dict(state)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
        loss = optimizer.step(functools.partial(backward, optimizer, network))
        assert loss.requires_grad
        schedule.step()
    return [network.weight, network.bias], optimizer.state_dict()


def backward(optimizer, network):
    optimizer.zero_grad()
    loss = network(torch.ones(4, 3)).square().sum()
    loss.backward()
    return loss


@pytest.mark.parametrize("name", KINDS)
def test_they_compute_the_same_and_import_no_compiler(name, monkeypatch):
    expected, state = trained(getattr(torch.optim, name), KINDS[name])  # which imports it
    kind = getattr(optimizers, name)
    assert all(map(torch.equal, trained(kind, KINDS[name])[0], expected))
    monkeypatch.delitem(sys.modules, optimizers.COMPILER)
    weights, own = trained(kind, KINDS[name])
    assert optimizers.COMPILER not in sys.modules
    assert all(map(torch.equal, weights, expected))
    assert own["param_groups"] == state["param_groups"]
    assert all(
        torch.equal(own["state"][0][key], value) for key, value in state["state"][0].items() if value is not None
    )
