"""What a task is: a float network, fixed splits and a quantization scheme."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from quantenv.attention import with_plain_attention
from quantenv.channel_groups import Channels, split_layers
from quantenv.errors import QuantenvError, UnsupportedLayerError
from quantenv.files import content_hash
from quantenv.layers import LayerSpec, describe
from quantenv.quantize.identity import network_content, tensor_digest

SPLITS = ("train", "calibration", "search", "test")


@dataclass(frozen=True)
class Split:
    """Samples held in memory."""

    inputs: torch.Tensor
    """Float32 inputs, already normalised, shape (N, ...)."""
    labels: torch.Tensor
    """Class indices, int64, shape (N,)."""

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels) or not len(self.inputs):
            raise QuantenvError(
                f"A split needs as many labels as inputs and at least one sample: "
                f"got {len(self.inputs)} inputs and {len(self.labels)} labels."
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Task:
    """Everything that fixes what accuracy an allocation has.

    The splits ``train``, ``search`` and ``test`` must be disjoint; ``calibration`` may lie within ``train``.

    Raises:
        QuantenvError: If a split is missing, or search or test samples occur in another split.
        QuantenvError: On first use of `layers`, if the channel groups are no partition of a layer's output channels.
        UnsupportedLayerError: On first use of `layers`, if the network cannot be quantized.
    """

    name: str
    """Name used in logs, allocation files and run folders."""
    network: nn.Module
    """Float network with pretrained weights. The task keeps a copy in eval mode, in which attention is expressed by its
    projections (see `quantenv.attention`): what becomes of the network afterwards changes no number."""
    splits: Mapping[str, Split]
    """``train`` (fine-tuning), ``calibration`` (ranges), ``search`` (the reward), ``test`` (reported once)."""
    scheme: str = "linear"
    """Quantizer of weights and activations."""
    source: str = ""
    """Where the data come from, for the provenance of what is made from them."""
    tied: tuple[tuple[str, ...], ...] = ()
    """Groups of layers that get the same bits when every allocation of the task is enumerated."""
    channel_groups: Channels = field(default_factory=dict)
    """Output channels of each channel group, by layer name, the most sensitive group first; layers that are not named
    are whole. `quantenv.sensitivity.group_channels` measures them."""

    def __post_init__(self) -> None:
        missing = [name for name in SPLITS if name not in self.splits]
        if missing:
            raise QuantenvError(
                f"Task {self.name!r} lacks the split{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
                f"a task needs {', '.join(SPLITS)}."
            )
        seen: dict[bytes, str] = {}
        for split in ("train", "search", "test"):
            samples = {sample_digest(row) for row in self.splits[split].inputs}
            for sample in samples:
                if sample in seen:
                    raise QuantenvError(
                        f"Task {self.name!r}: the splits {seen[sample]!r} and {split!r} share a sample; "
                        "search and test accuracy would be training accuracy. Remove duplicates first."
                    )
            seen.update(dict.fromkeys(samples, split))
        plain = with_plain_attention(self.network)
        object.__setattr__(self, "network", (_copy(plain) if plain is self.network else plain).eval())

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The quantizable layers, in execution order; in place of a layer its channel groups, where it has any."""
        layers = describe(self.network, self.splits["calibration"].inputs[:1])
        return split_layers(layers, self.channel_groups)

    @cached_property
    def identity(self) -> str:
        """Content hash of what the network computes (see `quantenv.quantize.identity`), splits, scheme and groups.

        The same in every process, on every machine and for any number of threads.
        """
        return content_hash(self._content())

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


def _copy(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError, NotImplementedError) as error:  # what cannot be copied says so in one of these
        raise UnsupportedLayerError(
            f"{type(network).__name__} cannot be copied by copy.deepcopy ({(str(error).splitlines() or [''])[0]}): let "
            "it keep parameters, buffers and plain values only."
        ) from error


def sample_digest(sample: torch.Tensor) -> bytes:
    """Returns 16 bytes that stand for a sample's content: equal samples are found without keeping them."""
    return hashlib.blake2b(sample.numpy().tobytes(), digest_size=16).digest()
