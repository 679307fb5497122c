"""What ships with the package for its own tasks: the weights of their float networks."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import WEIGHTS_FORMAT, read_tensors

WEIGHTS = Path(__file__).parent / "weights"
REMEDY = "It is part of quantenv: install quantenv again."


def weights_file(task: str) -> Path:
    """Returns where the weights of a task's float network are."""
    return WEIGHTS / f"{task}.safetensors"


def shipped_network(task: str, make_network: Callable[[], nn.Module]) -> nn.Module:
    """Makes a task's float network with the weights that ship with the package. No global random state is touched.

    Args:
        task: The task's name.
        make_network: Makes the network with any weights.

    Returns:
        The network, in eval mode.

    Raises:
        QuantenvError: If the file is missing or damaged, or does not fit.
    """
    path = weights_file(task)
    _, state = read_tensors(path, WEIGHTS_FORMAT, f"the weights of task {task!r}", REMEDY)
    with torch.random.fork_rng(devices=[]):
        network = make_network()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise QuantenvError(
            f"{path} holds weights of another network than {type(network).__name__}. {REMEDY}"
        ) from error
    return network.eval()
