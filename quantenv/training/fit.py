"""Training of small float networks that a task makes for itself, deterministic and private."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from quantenv.quantization.optimizers import AdamW
from quantenv.tasks.base import Split


@dataclass(frozen=True)
class TrainingRecipe:
    """AdamW with a one-cycle learning rate on batches shifted by up to one pixel."""

    epochs: int = 40
    """Passes over the training split."""
    batch_size: int = 32
    """Samples of one step; the last, smaller batch of an epoch is dropped."""
    learning_rate: float = 0.02
    """Peak of the one-cycle schedule (Smith and Topin 2019)."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    seed: int = 1
    """Seed of initialisation, order and shifts."""


def train_float(make_network: Callable[[], nn.Module], split: Split, recipe: TrainingRecipe) -> nn.Module:
    """Trains a network from scratch; the same recipe and data give the same weights on the same machine.

    One thread is used, whatever the caller's setting, because sums over several threads depend on their number.
    The global random state and thread count are as before afterwards.

    Args:
        make_network: Makes the network; its initialisation is seeded.
        split: Training samples, inputs of shape (N, C, H, W).
        recipe: Hyperparameters.

    Returns:
        The trained network, in eval mode.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return _train(make_network(), split, recipe)
    finally:
        torch.set_num_threads(threads)


def _train(network: nn.Module, split: Split, recipe: TrainingRecipe) -> nn.Module:
    batches = len(split) // recipe.batch_size
    optimizer = AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.epochs * batches)
    network.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(split))[: batches * recipe.batch_size]
        for indices in order.split(recipe.batch_size):
            loss = F.cross_entropy(network(_shifted(split.inputs[indices])), split.labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _shifted(inputs: torch.Tensor) -> torch.Tensor:
    """Shifts a batch (B, C, H, W) by -1, 0 or 1 pixel along each axis, filling with zeros."""
    height, width = inputs.shape[-2:]
    top, left = torch.randint(0, 3, (2,)).tolist()
    return F.pad(inputs, (1, 1, 1, 1))[..., top : top + height, left : left + width]
