"""What a task is: a float network, fixed splits and a quantization scheme."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from quantenv.core.channel_groups import Channels, split_layers, whole
from quantenv.core.copies import copy_of
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.files import content_hash
from quantenv.core.layers import LayerSpec
from quantenv.graph.identity import network_content, tensor_digest
from quantenv.graph.layers import describe_plain, float_weights_note
from quantenv.graph.plain_network import plain_network
from quantenv.tasks.data.samples import check_classes, class_indices, plain_tensor
from quantenv.tasks.outputs import count_classes

SPLITS = ("train", "calibration", "search", "test")
#: Chosen by the search split among the post-training steps that cost at most 1.3 evaluations of ``linear``, see
#: experiments/studies/results/bench_correction.md.
DEFAULT_SCHEME = "linear+bias+batch-norm"


@dataclass(frozen=True)
class Split:
    """Samples held in memory.

    Raises:
        QuantenvError: If inputs are no dense tensor of floats, or labels no whole numbers, one for each of them.
    """

    inputs: torch.Tensor
    """Float32 inputs, already normalised, shape (N, ...); float64 for a network of double precision. Half precision is
    converted, and gradients are left behind."""
    labels: torch.Tensor
    """Class indices from 0, int64, shape (N,). Other whole numbers, and (N, 1), are converted."""

    def __post_init__(self) -> None:
        count = len(self.inputs) if getattr(self.inputs, "shape", ()) else 0
        labels = class_indices(self.labels, count)
        inputs = plain_tensor(self.inputs, "A split's tensor of inputs")
        if not inputs.is_floating_point():
            raise QuantenvError(
                f"A split's inputs are {inputs.dtype}; expected float32, as the network takes them. Scale and "
                "normalise images; of what the network takes as whole numbers give the same numbers by .float()."
            )
        object.__setattr__(self, "inputs", inputs.float())
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that fixes what accuracy an allocation has.

    The splits ``train``, ``search`` and ``test`` must be disjoint; ``calibration`` may lie within ``train``.

    Raises:
        QuantenvError: If a split is missing or unknown, search or test samples occur in another split, an input is not
            finite, or the network has no output for a label.
        UnsupportedLayerError: If the network does not make logits (B, classes) of a batch of samples, each by itself.
        QuantenvError: On first use of `layers`, if the channel groups are no partition of a layer's output channels.
        UnsupportedLayerError: On first use of `layers`, if the network cannot be quantized.
    """

    name: str
    """Name used in logs, allocation files and run folders."""
    network: nn.Module
    """Float network with pretrained weights. The task keeps a copy of its plain form (see `quantenv.graph`) in eval
    mode: what becomes of the network afterwards changes no number."""
    splits: Mapping[str, Split]
    """``train`` (fine-tuning), ``calibration`` (ranges), ``search`` (the reward), ``test`` (reported once)."""
    scheme: str = DEFAULT_SCHEME
    """How it is quantized, see `quantenv.quantization.schemes`."""
    source: str = ""
    """Where the data come from, for the provenance of what is made from them."""
    tied: tuple[tuple[str, ...], ...] = ()
    """Groups of layers that get the same bits when every allocation of the task is enumerated."""
    channel_groups: Channels = field(default_factory=dict)
    """Output channels of each channel group, by layer name, the most sensitive group first; layers that are not named
    are whole. `quantenv.sensitivity.group_channels` measures them."""
    prepared: Any = None
    """What was prepared of it elsewhere, such as on another machine, to be used here: a
    `quantenv.quantization.prepared.PreparedNetwork`. None for what ships with the package, is kept, or is prepared
    now."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise QuantenvError(f"A task's name is {self.name!r}; expected a text.")
        if not isinstance(self.network, nn.Module):
            raise QuantenvError(
                f"The network of task {self.name!r} is a {type(self.network).__name__}; expected a torch.nn.Module."
            )
        missing = [name for name in SPLITS if name not in self.splits]
        if missing:
            raise QuantenvError(
                f"Task {self.name!r} lacks the split{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
                f"a task needs {', '.join(SPLITS)}."
            )
        for name, split in self.splits.items():
            if name not in SPLITS:
                raise unknown_name(f"split of task {self.name!r}:", name, SPLITS)
            if not isinstance(split, Split):
                raise QuantenvError(
                    f"The split {name!r} of task {self.name!r} is a {type(split).__name__}; expected a Split of inputs "
                    "and labels. quantenv.tasks.task_from_datasets makes them of data sets."
                )
        self._check_samples()
        seen: dict[bytes, str] = {}
        for name in ("train", "search", "test"):
            samples = {sample_digest(row) for row in self.splits[name].inputs}
            for sample in samples:
                if sample in seen:
                    raise QuantenvError(
                        f"Task {self.name!r}: the splits {seen[sample]!r} and {name!r} share a sample; "
                        "search and test accuracy would be training accuracy. Remove duplicates first."
                    )
            seen.update(dict.fromkeys(samples, name))
        plain = plain_network(self.network, self.splits["calibration"].inputs)
        object.__setattr__(self, "network", (copy_of(plain) if plain is self.network else plain).eval())
        few = torch.cat([self.splits[name].inputs[:1] for name in ("train", "search", "test")])
        classes = count_classes(self.network, few)
        for name in SPLITS:
            check_classes(self.splits[name].labels, classes, partial(self._name_of, name))

    def _check_samples(self) -> None:
        """Checks that inputs are finite and of one shape."""
        shape = self.splits["train"].inputs.shape[1:]
        for name in SPLITS:
            inputs = self.splits[name].inputs
            if inputs.shape[1:] != shape:
                raise QuantenvError(
                    f"Inputs of task {self.name!r} differ in shape: {tuple(shape)} in the split 'train' and "
                    f"{tuple(inputs.shape[1:])} in {name!r}."
                )
            if not all(bound.isfinite() for bound in inputs.aminmax()):
                index = int(torch.nonzero(~inputs.flatten(1).isfinite().all(1))[0])
                raise QuantenvError(
                    f"{self._name_of(name, index)} holds NaN or infinity, which no accuracy can be measured on: "
                    "mend or leave out that sample."
                )

    def _name_of(self, split: str, index: int) -> str:
        return f"Sample {index} of the split {split!r} of task {self.name!r}"

    def split(self, name: str) -> Split:
        """Returns a split.

        Raises:
            QuantenvError: If there is none of this name.
        """
        if name not in self.splits:
            raise unknown_name(f"split of task {self.name!r}:", name, SPLITS)
        return self.splits[name]

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The quantizable layers, in execution order; in place of a layer its channel groups, where it has any."""
        layers = describe_plain(self.network, self.splits["calibration"].inputs)
        return split_layers(layers, self.channel_groups)

    @property
    def float_weights_note(self) -> str | None:
        """Says how many of the network's parameters no decision covers, and which; None if there are none."""
        return float_weights_note(self.network, {whole(layer).name for layer in self.layers})

    @cached_property
    def identity(self) -> str:
        """Content hash of what the network computes (see `quantenv.graph.identity`), splits, scheme and groups.

        The same in every process, on every machine and for any number of threads.
        """
        return content_hash(self._content())

    @cached_property
    def calibrated_on(self) -> str:
        """Content hash of what the network computes and of the calibration inputs, likewise."""
        inputs = self.splits["calibration"].inputs
        return content_hash([tensor_digest(inputs), *network_content(self.network, inputs)])

    def _content(self) -> Iterator[bytes | str]:
        """Yields what the identity is made of; one part at a time, since splits can be large."""
        yield self.scheme
        if self.channel_groups:
            groups = {name: [sorted(group) for group in groups] for name, groups in self.channel_groups.items()}
            yield json.dumps(groups, sort_keys=True)
        yield from network_content(self.network, self.splits["search"].inputs)
        for split in SPLITS:
            data = self.splits[split]
            yield from (split, tensor_digest(data.inputs), tensor_digest(data.labels))


def sample_digest(sample: torch.Tensor) -> bytes:
    """Returns 16 bytes that stand for a sample's content: equal samples are found without keeping them."""
    return hashlib.blake2b(sample.numpy().tobytes(), digest_size=16).digest()
