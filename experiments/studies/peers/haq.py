"""HAQ's episode (Wang et al. 2019) enacted again: what its published code makes the processor do for one allocation.

The float weights are loaded, every layer's weights are clustered by k-means (scikit-learn, k-means++, one start, three
iterations), the network is trained on 20,000 images for an epoch, each step followed by an update of all centroids, one
by one over masks of the weights, and evaluated on 10,000 images; all eager and in float32. Nothing is kept from one
episode to the next. Left out, in HAQ's favour: the agent's own time, and loading and augmenting images.
"""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import nn

from experiments.studies.peers.job import Job
from experiments.studies.peers.networks import make_task
from experiments.studies.peers.processor_time import Phases
from quantenv.tasks import Split, Task
from quantenv.training.haq import DATA_BSIZE, FINETUNE_LR, MOMENTUM, TRAIN_SIZE, WEIGHT_DECAY

#: Bits that episodes draw from: about 0.4 of the 8-bit size, which is HAQ's default compression and our budget.
LEAST_BITS, MOST_BITS = 2, 4
#: Iterations of k-means in an episode of the published code.
ITERATIONS = 3


def run(job: Job, phases: Phases) -> dict[str, Any]:
    """Plays episodes with random bits.

    Args:
        job: How many, on how many images, with or without fine-tuning.
        phases: Receives what imports, data and episodes took.

    Returns:
        The share of correct answers of each episode.
    """
    torch.set_num_threads(1)
    phases.end("imports")
    task = make_task(job)
    phases.end("data")
    rng = np.random.default_rng(0)
    episodes = ClusteredNetwork(task)
    accuracies = []
    for _ in range(job.episodes):
        episodes.reload(rng.integers(LEAST_BITS, MOST_BITS + 1, len(task.layers)).tolist())
        if job.epochs:
            episodes.fine_tune(task.splits["train"])
        accuracies.append(episodes.accuracy(task.splits["search"]))
    phases.end("search")
    return {"accuracies": accuracies}


class ClusteredNetwork:
    """A network whose layers' weights are centroids.

    Args:
        task: Gives the float network.
    """

    def __init__(self, task: Task) -> None:
        self._float = copy.deepcopy(task.network.state_dict())
        self._network = copy.deepcopy(task.network)
        self._weights = [self._weight(layer.name) for layer in task.layers]
        self._clusters: list[tuple[torch.Tensor, int]] = []

    def reload(self, bits: list[int]) -> None:
        """Loads the float weights and clusters those of each layer into 2**bits."""
        self._network.load_state_dict(self._float)
        self._clusters = []
        for weight, number in zip(self._weights, bits, strict=True):
            values = weight.detach().reshape(-1, 1).numpy()
            count = min(2**number, len(values))
            found = KMeans(count, init="k-means++", n_init=1, max_iter=ITERATIONS, random_state=0).fit(values)
            self._clusters.append((torch.from_numpy(found.labels_).long(), count))
        self._to_centroids()

    def fine_tune(self, train: Split) -> None:
        """Trains for an epoch by HAQ's recipe; weights of one cluster stay equal."""
        optimizer = torch.optim.SGD(self._network.parameters(), FINETUNE_LR, MOMENTUM, weight_decay=WEIGHT_DECAY)
        self._network.train()
        inputs, labels = train.inputs[:TRAIN_SIZE], train.labels[:TRAIN_SIZE]
        for batch, expected in zip(inputs.split(DATA_BSIZE), labels.split(DATA_BSIZE), strict=True):
            loss = F.cross_entropy(self._network(batch), expected)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self._to_centroids()
        self._network.eval()

    def accuracy(self, split: Split) -> float:
        """Returns the share of correct answers."""
        correct = 0
        with torch.no_grad():
            for batch, labels in zip(split.inputs.split(DATA_BSIZE), split.labels.split(DATA_BSIZE), strict=True):
                correct += int((self._network(batch).argmax(1) == labels).sum())
        return correct / len(split)

    def _to_centroids(self) -> None:
        """Replaces each weight by the mean of its cluster."""
        with torch.no_grad():
            for weight, (labels, count) in zip(self._weights, self._clusters, strict=True):
                averaged = torch.zeros_like(weight)
                for centroid in range(count):
                    members = (labels == centroid).float().view_as(weight)
                    averaged += (weight * members).sum() / members.sum() * members
                weight.copy_(averaged)

    def _weight(self, layer: str) -> nn.Parameter:
        weight = self._network.get_submodule(layer).weight
        assert isinstance(weight, nn.Parameter)
        return weight
