import io
import urllib.error

import pytest
import torch

from quantenv.core.errors import QuantenvError
from quantenv.tasks import TaskSource, get_task
from quantenv.tasks.networks.cifar import NETWORKS
from quantenv.tasks.small_images import DATA_SETS, make_small_images, pretrained_file
from tests.tasks.data_sets import gzipped, write_cifar, write_mnist


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no other data."""
    monkeypatch.setenv("QUANTENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QUANTENV_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_arguments, **_options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def any_checksum(monkeypatch):
    """CIFAR's files are of noise here, so their checksums are not the published ones."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)


def pretrained(name, model="resnet20"):
    """Puts random weights where those of `quantenv pretrain` are looked for, and returns them."""
    network = NETWORKS[model](len(DATA_SETS[name].mean), DATA_SETS[name].classes)
    pretrained_file(name, model).parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), pretrained_file(name, model))
    return network.state_dict()


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")])
def test_mnist_and_its_like(name, folder, tmp_path):
    state = pretrained(name)
    task = make_small_images(name, TaskSource(data=str(write_mnist(tmp_path / "data", folder))))
    assert {name: len(split) for name, split in task.splits.items()} == {
        "train": 60,
        "calibration": 60,
        "search": 20,
        "test": 20,
    }
    assert all(torch.equal(value, state[key]) for key, value in task.network.state_dict().items())
    for split in task.splits.values():
        pixels = (split.inputs * DATA_SETS[name].std[0] + DATA_SETS[name].mean[0]) * 255
        assert pixels.shape[1:] == (1, 28, 28)
        assert torch.equal(((pixels.mean((1, 2, 3)) - 14.5) / 20).round().long(), split.labels)


@pytest.mark.parametrize(("name", "train"), [("cifar10", 50), ("cifar100", 10)])
def test_cifar(name, train, tmp_path, any_checksum):
    pretrained(name)
    root = write_cifar(tmp_path / "data", fine=name == "cifar100")
    task = make_small_images(name, TaskSource(data=str(root)))
    assert [len(task.splits[name]) for name in ("train", "search", "test")] == [train, 5, 5]
    wanted = DATA_SETS[name]
    images = task.splits["train"].inputs * torch.tensor(wanted.std)[:, None, None]
    pixels = (images + torch.tensor(wanted.mean)[:, None, None]) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    assert task.network(task.splits["search"].inputs).shape == (5, wanted.classes)


def test_models_and_weights_can_be_chosen(tmp_path):
    network = NETWORKS["resnet32"](1, 10)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    brought = TaskSource(str(write_mnist(tmp_path / "data")), "resnet32", str(tmp_path / "weights.pt"))
    assert len(get_task("mnist", brought).layers) == 32


def test_data_are_found_in_the_folder_of_the_environment(tmp_path, monkeypatch, no_network):
    pretrained("mnist")
    monkeypatch.setenv("QUANTENV_DATA", str(write_mnist(tmp_path / "data")))
    assert len(make_small_images("mnist", TaskSource()).splits["train"]) == 60


class Served(io.BytesIO):
    """What `urlopen` returns."""

    def __init__(self, content):
        super().__init__(content)
        self.length = len(content)
        self.headers = {}
        self.url = ""


def serve(monkeypatch, files, breaks_at=None):
    """Answers downloads with `files`; the file `breaks_at` ends in an error. Returns the names asked for."""
    asked = []

    def urlopen(request, *_arguments, **_options):
        name = request.full_url.rsplit("/", 1)[1]
        asked.append(name)
        if name == breaks_at:
            raise urllib.error.URLError("connection reset")
        return Served(files[name])

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops=3: url)
    monkeypatch.setattr("torchvision.datasets.utils.check_md5", lambda path, md5, **_: True)
    return asked


def test_data_are_downloaded_once(tmp_path, cache, monkeypatch):
    pretrained("mnist")
    asked = serve(monkeypatch, gzipped(write_mnist(tmp_path / "served")))
    first = make_small_images("mnist", TaskSource())
    assert len(asked) == 4
    assert make_small_images("mnist", TaskSource()).identity == first.identity
    assert len(asked) == 4
    assert [path.name for path in (cache / "data").iterdir()] == ["MNIST"]


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_a_broken_download_leaves_nothing(tmp_path, cache, monkeypatch, file):
    pretrained("mnist")
    files = gzipped(write_mnist(tmp_path / "served"))
    serve(monkeypatch, files, file)
    with pytest.raises(
        QuantenvError, match=r"Cannot download MNIST: Error downloading .*connection reset.*by --data or QUANTENV_DATA"
    ):
        make_small_images("mnist", TaskSource())
    assert list((cache / "data").iterdir()) == []
    serve(monkeypatch, files)
    assert len(make_small_images("mnist", TaskSource()).splits["train"]) == 60


def test_without_data_or_network_the_error_says_what_to_do(no_network, tmp_path):
    pretrained("cifar10")
    with pytest.raises(
        QuantenvError, match=r"Cannot download CIFAR10: .*no route to host.*cifar-10-batches-py by --data"
    ):
        make_small_images("cifar10", TaskSource())
    with pytest.raises(QuantenvError, match="holds no CIFAR10: expected the folder cifar-10-batches-py"):
        make_small_images("cifar10", TaskSource(data=str(tmp_path)))


def test_damaged_data_are_clear_errors(tmp_path):
    pretrained("mnist")
    root = write_mnist(tmp_path / "data")
    images = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:5000])
    with pytest.raises(QuantenvError, match=r"Cannot read MNIST in .*MNIST: .* Remove or replace that folder"):
        make_small_images("mnist", TaskSource(data=str(root)))
    pretrained("cifar10")
    with pytest.raises(QuantenvError, match=r"Cannot read CIFAR10 in .*: Dataset not found or corrupted"):
        make_small_images("cifar10", TaskSource(data=str(write_cifar(tmp_path / "cifar"))))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "needs a trained resnet20: run `quantenv pretrain --task mnist --model resnet20` first"),
        ({"model": "resnet56"}, "needs a trained resnet56"),
        ({"model": "torchvision:resnet18"}, "Unknown network of task 'mnist'"),
        ({"weights": "DEFAULT"}, "Nobody publishes weights"),
        ({"weights": "missing.pt"}, "Cannot read the weights missing.pt"),
        ({"image_size": 64}, "takes no --image_size"),
    ],
)
def test_mistakes_are_clear(options, sentence, no_network):
    with pytest.raises(QuantenvError, match=sentence):
        get_task("mnist", TaskSource(**options))
