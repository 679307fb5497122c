"""The float networks of the race, and the images that every program gets of them."""

import dataclasses

import numpy as np
import torch
from torch import nn

from experiments.studies.peers.efficientnet import EfficientNet
from experiments.studies.peers.job import Job
from quantenv.core.errors import unknown_name
from quantenv.tasks import Split, Task, get_task
from quantenv.tasks.base import SPLITS
from quantenv.tasks.networks.state_dicts import load_weights
from quantenv.tasks.networks.vision import torchvision

#: Networks with trained weights, on CIFAR-10.
TRAINED = ("resnet20", "efficientnet")
#: Networks of torchvision with random weights, on random images of 224 x 224 pixels: they are only timed.
TIMED = ("mobilenet_v2", "resnet50")
PIXELS, CLASSES = 224, 1000


def make_task(job: Job) -> Task:
    """Makes the task that a job is about.

    Raises:
        QuantenvError: If the network is unknown, or data or weights are missing.
    """
    if job.network in TIMED:
        return _timed(job.network, job.images or 16)
    if job.network not in TRAINED:
        raise unknown_name("network", job.network, (*TRAINED, *TIMED))
    task = get_task("resnet20")
    if job.network == "efficientnet":
        network = EfficientNet()
        load_weights(network, str(job.weights))
        task = Task("efficientnet", network, task.splits, task.scheme, task.source)
    if job.images is not None and job.images != len(task.splits["search"]):
        task = _with_search(task, job.images)
    return task if job.scheme is None else dataclasses.replace(task, scheme=job.scheme)


def _with_search(task: Task, images: int) -> Task:
    """Takes the search split from the training images, as HAQ does, so that it can be of 10,000."""
    train = task.splits["train"]
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(train)))
    search, rest = order[:images], order[images:]
    splits = {
        **task.splits,
        "train": Split(train.inputs[rest], train.labels[rest]),
        "search": Split(train.inputs[search], train.labels[search]),
    }
    return dataclasses.replace(task, splits=splits)


def _timed(name: str, images: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = getattr(torchvision().models, name)(weights=None).eval()
    splits = {
        split: Split(
            torch.randn(images, 3, PIXELS, PIXELS, generator=generator),
            torch.randint(0, CLASSES, (images,), generator=generator),
        )
        for split in SPLITS
    }
    return Task(name, network, splits, source="random weights and images")
