"""A task of a third party: its own data set, its own network, trained when the task is made.

Without an entry point, from the folder that holds this file, it is `quantenv train --task rings:make_task`.
"""

import torch
from torch import nn
from torch.utils.data import Dataset

from quantenv.tasks import task_from_datasets


class Rings(Dataset):
    """Points in the plane; the class is the ring that they lie in."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.classes = torch.randint(3, (count,), generator=generator)
        radius = self.classes + 0.5 + 0.3 * torch.rand(count, generator=generator)
        angle = 6.2832 * torch.rand(count, generator=generator)
        self.points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    def __len__(self):
        return len(self.classes)

    def __getitem__(self, index):
        return self.points[index], int(self.classes[index])


def make_task():
    """Returns the task; the same one every time, so that what was evaluated once is known for good."""
    train, held_out = Rings(400, seed=0), Rings(200, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(network.parameters(), 0.02)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(train.points), train.classes).backward()
            optimizer.step()
    return task_from_datasets(network, train, held_out, "rings")
