"""A small task with every structure of a network (six layers), and a cache folder of the test's own."""

import pytest
import torch

from quantenv.tasks import Split, Task
from tests.networks import branched

SIZES = {"train": 24, "calibration": 24, "search": 40, "test": 8}


def small_task(network=None, seed=0, **changes):
    """Random images (3, 8, 8) of five classes; `changes` replace splits."""
    generator = torch.Generator().manual_seed(seed)
    splits = {
        name: Split(torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator))
        for name, size in SIZES.items()
    }
    return Task("small", branched() if network is None else network, {**splits, **changes}, "linear")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def task(cache):
    return small_task()
