"""Your network and your data: a one-dimensional convolution on signals."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import quantenv
from quantenv.tasks import task_from_datasets


def signals(count: int, seed: int) -> TensorDataset:
    """Sines of one of three frequencies, under noise: (N, 1, 64)."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (count,), generator=generator)
    phase = 6.3 * torch.rand(count, 1, generator=generator)
    time = torch.linspace(0, 6.3, 64)
    clean = torch.sin((classes[:, None] + 1) * time + phase)
    return TensorDataset((clean + 0.8 * torch.randn(count, 64, generator=generator))[:, None], classes)


train, held_out = signals(600, seed=0), signals(400, seed=1)
torch.manual_seed(0)
network = nn.Sequential(
    *(nn.Conv1d(1, 16, 9, 2, padding=4), nn.ReLU(), nn.Conv1d(16, 16, 9, 2, padding=4), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(256, 3)),
)
optimizer = torch.optim.Adam(network.parameters(), 0.003)
for _ in range(60):
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(train.tensors[0]), train.tensors[1]).backward()
    optimizer.step()

task = task_from_datasets(network.eval(), train, held_out, name="signals")
found = quantenv.search(task, agent="surrogate", budget=0.4, evaluations=60)
print(found.best)  # bits of every layer
print(found.report)  # on data that no choice was made on, before and after fine-tuning, beside uniform bits
