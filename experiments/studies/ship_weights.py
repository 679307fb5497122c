"""Makes the weights that ship with quantenv: ``python -m experiments.studies.ship_weights digits|resnet20``.

Each file's header holds the command and what else its numbers depend on, and a checksum of all of them. Those of digits
are trained here, and are the same to the bit wherever torch is the same and is held to AVX2::

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m experiments.studies.ship_weights digits

Those of ResNet-20 are taken from a state dict that torch.save wrote::

    python -m experiments.studies.ship_weights resnet20 --weights $QUANTENV_DATA/resnet20_cifar10_jpeg.pt
"""

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.options.console import results
from quantenv.core.tensor_file import WEIGHTS_FORMAT, write_tensors
from quantenv.tasks.digits import DigitsNet, digits_splits
from quantenv.tasks.networks.state_dicts import load_weights
from quantenv.tasks.resnet20 import ResNet20
from quantenv.tasks.shipped import weights_file
from quantenv.training.fit import TrainingRecipe, train_float

#: Variables that choose the instructions that torch computes with.
INSTRUCTIONS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the weights of one task and writes them.

    Args:
        arguments: The command line; None means the process's own.

    Raises:
        QuantenvError: If a state dict cannot be read, or is of another network.
    """
    parser = argparse.ArgumentParser(description="Makes the weights that ship with quantenv.")
    parser.add_argument("task", choices=("digits", "resnet20"))
    parser.add_argument("--weights", help="state dict of resnet20, by torch.save")
    parser.add_argument("--epochs", type=int, default=TrainingRecipe.epochs, help="passes over the images of digits")
    parser.add_argument("--output", help="the file; by default where the task reads it")
    options = parser.parse_args(arguments)
    if (options.weights is None) == (options.task == "resnet20"):
        parser.error("resnet20 needs --weights, digits is trained")
    if options.task == "digits":
        network, about = _train_digits(TrainingRecipe(epochs=options.epochs))
    else:
        network, about = _convert_resnet20(Path(options.weights))
    path = Path(options.output) if options.output else weights_file(options.task)
    write_tensors(path, WEIGHTS_FORMAT, about, network.state_dict())
    results().print(f"{path}: {hashlib.sha256(path.read_bytes()).hexdigest()}", soft_wrap=True)


def _train_digits(recipe: TrainingRecipe) -> tuple[nn.Module, dict[str, Any]]:
    network = train_float(DigitsNet, digits_splits()["train"], recipe)
    chosen = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS if name in os.environ]
    return network, {
        "command": " ".join([*chosen, "python -m experiments.studies.ship_weights digits"]),
        "recipe": dataclasses.asdict(recipe),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": sys.version.split()[0],
    }


def _convert_resnet20(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    network = ResNet20()
    load_weights(network, path)
    return network, {
        "command": f"python -m experiments.studies.ship_weights resnet20 --weights $QUANTENV_DATA/{path.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
