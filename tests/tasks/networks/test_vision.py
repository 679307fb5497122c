import subprocess
import sys

import torch

from quantenv.tasks.networks.vision import torchvision


def test_models_run_and_data_sets_and_transforms_import():
    package = torchvision()
    with torch.no_grad():
        assert package.models.squeezenet1_1(weights=None, num_classes=3)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert package.datasets.CIFAR10
    assert package.transforms.Compose


def test_it_is_the_same_package_every_time():
    assert torchvision() is torchvision() is sys.modules["torchvision"]


def test_loading_works_in_a_fresh_process_after_a_failed_import():
    code = (
        "import importlib, sys\n"
        "try: importlib.import_module('torchvision')\n"
        "except RuntimeError: pass\n"
        "from quantenv.tasks.networks.vision import torchvision\n"
        "print(torchvision().models.resnet18.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "resnet18"
