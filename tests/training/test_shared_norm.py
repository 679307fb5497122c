import copy

import pytest
import torch
from torch import nn

from quantenv.training.parallel import Share
from quantenv.training.shared_norm import share_batch_norms


@pytest.fixture
def group():
    """A group of this process alone: the shared statistics are then its own."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm2d(3), (8, 3, 4, 5)),
        (nn.BatchNorm1d(3), (8, 3)),
        (nn.BatchNorm1d(3, affine=False), (8, 3, 6)),
        (nn.BatchNorm1d(3, momentum=None), (8, 3)),
    ],
)
def test_a_shared_norm_is_torch_s_own_where_nothing_is_shared(group, norm, shape):
    shared = share_batch_norms(nn.Sequential(copy.deepcopy(norm)), Share("cpu"))
    assert type(shared[0]) is not type(norm)
    for seed in range(3):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        one, other = shared(ours), norm(theirs)
        assert torch.allclose(one, other, atol=1e-5)
        one.square().sum().backward()
        other.square().sum().backward()
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)
    for name, value in norm.state_dict().items():
        assert torch.allclose(shared.state_dict()[f"0.{name}"], value, atol=1e-6), name
    assert torch.allclose(shared.eval()(x), norm.eval()(x), atol=1e-6)
