import pytest
import torch

from quantenv.core.errors import QuantenvError, UnsupportedLayerError
from quantenv.tasks import Split, Task
from tests.networks import branched


def split(start, count=4):
    images = torch.arange(start, start + count, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 16, 16)
    return Split(images.contiguous(), torch.zeros(count, dtype=torch.int64))


def splits(**changes):
    return {"train": split(0), "calibration": split(0, 2), "search": split(10), "test": split(20), **changes}


def test_a_task_describes_its_network():
    task = Task("t", branched().train(), splits())
    assert [layer.name for layer in task.layers][:2] == ["stem", "block.grouped"]
    assert not task.network.training


def test_splits_must_be_disjoint():
    with pytest.raises(QuantenvError, match="'train' and 'test' share a sample"):
        Task("t", branched(), splits(test=split(3)))


def test_missing_splits_are_named():
    with pytest.raises(QuantenvError, match="lacks the split search"):
        Task("t", branched(), {key: value for key, value in splits().items() if key != "search"})


def test_labels_must_match_inputs():
    with pytest.raises(QuantenvError, match="3 inputs and 2 labels"):
        Split(torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(QuantenvError, match="at least one"):
        Split(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))


def test_identity_depends_on_weights_and_splits():
    task = Task("t", branched(), splits())
    assert Task("other name", branched(), splits()).identity == task.identity
    assert Task("t", branched(seed=1), splits()).identity != task.identity
    assert Task("t", branched(), splits(search=split(30))).identity != task.identity


class Pool(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def test_unsupported_networks_are_refused_on_first_use():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), Pool(), torch.nn.GRUCell(4, 3))
    with pytest.raises(UnsupportedLayerError, match="'2' is a GRUCell"):
        _ = Task("t", network, splits()).layers
