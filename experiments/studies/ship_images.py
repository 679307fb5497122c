"""Makes the images of task digits that ship with quantenv: ``python -m experiments.studies.ship_images``.

They are those that scikit-learn bundles. Importing it takes as long as everything else that a worker does before its
first evaluation, and every process of a digits search would.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn import __version__
from sklearn.datasets import load_digits

from experiments.options.console import results
from quantenv.core.tensor_file import write_tensors
from quantenv.tasks.digits import IMAGES, IMAGES_FORMAT


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the images and labels.

    Args:
        arguments: The command line; None means the process's own.
    """
    parser = argparse.ArgumentParser(description="Makes the images of task digits that ship with quantenv.")
    parser.add_argument("--output", default=str(IMAGES), help="the file; by default where the task reads it")
    options = parser.parse_args(arguments)
    data = load_digits()
    tensors = {
        name: torch.tensor(data[key]).to(torch.uint8) for name, key in (("images", "images"), ("labels", "target"))
    }
    about = {"command": "python -m experiments.studies.ship_images", "scikit-learn": __version__}
    write_tensors(Path(options.output), IMAGES_FORMAT, about, tensors)
    results().print(
        f"{options.output}: {hashlib.sha256(Path(options.output).read_bytes()).hexdigest()}", soft_wrap=True
    )


if __name__ == "__main__":
    main()
