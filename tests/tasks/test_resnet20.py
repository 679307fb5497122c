import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from quantenv.core.errors import QuantenvError
from quantenv.evaluation.table.shipped import get_table
from quantenv.tasks.resnet20 import GROUPS, IMAGES, MEAN, STD, ResNet20, make_resnet20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of the documented format: noise images, class k about as bright as k."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / IMAGES, "w") as archive:
        for part, count in (("train", 20), ("test", 2010)):
            for index in range(count):
                label = index % 2
                pixels = rng.integers(200 * label, 200 * label + 50, (32, 32, 3), dtype=np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
                archive.writestr(f"{part}/{('airplane', 'truck')[label]}/{index:04d}.jpg", buffer.getvalue())
    return folder


def test_it_reads_images_and_labels(folder, monkeypatch):
    monkeypatch.setenv("QUANTENV_DATA", str(folder))
    task = make_resnet20()
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 20,
        "calibration": 20,
        "search": 2000,
        "test": 10,
    }
    search = task.splits["search"]
    pixels = search.inputs * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    bright = pixels.mean((1, 2, 3)) > 0.5
    assert torch.equal(bright.long(), search.labels)  # classes are numbered alphabetically


def test_the_groups_partition_its_20_layers(folder, monkeypatch):
    monkeypatch.setenv("QUANTENV_DATA", str(folder))
    names = [layer.name for layer in make_resnet20().layers]
    assert len(names) == 20
    assert [name for group in GROUPS for name in group] == names
    table = get_table("resnet20_table")
    assert table.groups == GROUPS
    assert [layer.name for layer in table.layers] == names


def test_its_shape_is_the_papers():
    assert sum(parameter.numel() for parameter in ResNet20().parameters()) == 269_722  # He et al. 2016: 0.27M
    with torch.no_grad():
        assert ResNet20().eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_missing_and_damaged_data_are_clear_errors(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("QUANTENV_DATA", raising=False)
    with pytest.raises(QuantenvError, match="set QUANTENV_DATA to the folder"):
        make_resnet20()
    monkeypatch.setenv("QUANTENV_DATA", str(tmp_path))
    with pytest.raises(QuantenvError, match="Cannot read the data"):
        make_resnet20()
    (tmp_path / IMAGES).write_bytes((folder / IMAGES).read_bytes()[:5000])
    with pytest.raises(QuantenvError, match="Cannot read the data"):
        make_resnet20()
