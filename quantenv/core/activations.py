"""A network's activations as hardware meets them: the tensors that are stored, and the products of two of them.

Costs follow this description, which is found at the same places of the same graph that the simulated network is
quantized at (`quantenv.graph.activations`): a tensor is stored once, at the most bits that any of its readers wants.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quantenv.core.channel_groups import parts_of, whole
from quantenv.core.errors import QuantenvError
from quantenv.core.layers import LayerSpec


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is written once and read by layers and others. Sizes are of one sample."""

    name: str
    """Graph node whose output is stored."""
    elements: int
    """Elements that are stored, at least 1."""
    layers: tuple[str, ...]
    """Quantizable layers that read it, each at its own activation bits, in execution order."""
    shared: bool
    """Whether something that is no layer reads it too (an add, a pool, a float operation): it is then stored at 8 bits
    whatever the layers want."""
    reads: int
    """Elements that are read, summed over all readers, layers and others; of what takes a part, that part."""
    written: bool
    """Whether running the network writes it: its input and constants are there already."""
    charged_to: str
    """The layer that writes it, or the last one before it; the first layer for what is there before any."""
    first: int
    """Step at which it is written. Each step writes one tensor, in execution order, but for the last: the output's."""
    last: int
    """Last step at which it is read: until then it takes up memory."""


@dataclass(frozen=True)
class Product:
    """A multiplication of two activations, such as attention's scores and its weighted values; it has no weights."""

    name: str
    """Graph node that multiplies."""
    macs: int
    """Multiply-accumulate operations for one sample."""
    charged_to: str
    """The last layer before it, or the first layer."""


@dataclass(frozen=True)
class Activations:
    """The stored tensors and products of a network."""

    tensors: tuple[StoredTensor, ...]
    """In execution order: the one at index i is written at step i."""
    products: tuple[Product, ...] = ()
    """In execution order."""

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of all products for one sample."""
        return sum(product.macs for product in self.products)

    @property
    def share_at_8_bits(self) -> float:
        """Share of the stored elements that stay at 8 bits whatever is allocated, 0-1."""
        total = sum(tensor.elements for tensor in self.tensors)
        return sum(tensor.elements for tensor in self.tensors if tensor.shared) / total

    def check_fits(self, layers: Sequence[LayerSpec]) -> "Activations":
        """Checks that this is about a network of some layers, and returns it.

        Args:
            layers: The network's quantizable layers or their channel groups.

        Raises:
            QuantenvError: If another layer is named, one reads no tensor or several, or sizes or steps are impossible.
        """
        names = {whole(layer).name for layer in layers}
        readers = [name for tensor in self.tensors for name in tensor.layers]
        charged = {tensor.charged_to for tensor in self.tensors} | {product.charged_to for product in self.products}
        if sorted(readers) != sorted(names) or not charged <= names:
            raise QuantenvError(
                "The stored tensors are of other layers than the network's, whose every layer reads one of them: "
                "describe both from the same network."
            )
        for step, tensor in enumerate(self.tensors):
            sound = tensor.elements >= 1 and tensor.reads >= 0 and (tensor.layers or tensor.shared)
            if not sound or tensor.first != step or not step <= tensor.last <= len(self.tensors):
                raise QuantenvError(f"The stored tensor {tensor.name!r} has an impossible size, step or no reader.")
        if any(product.macs < 0 for product in self.products):
            raise QuantenvError("A product of activations has negative MACs.")
        return self


def chain(layers: Sequence[LayerSpec]) -> Activations:
    """Describes the activations of layers that follow one another, each reading what the one before it wrote.

    That is what layers alone tell: it holds for a plain chain, and is where an evaluator knows nothing of its network's
    graph.

    Args:
        layers: Quantizable layers or their channel groups, in execution order.
    """
    wholes = [whole(layers[part[0]]) for part in parts_of(layers)]
    before = [wholes[0], *wholes]
    return Activations(
        tuple(
            StoredTensor(
                name=f"input of {layer.name}",
                elements=layer.input_elements,
                layers=(layer.name,),
                shared=False,
                reads=layer.input_elements,
                written=step > 0,
                charged_to=before[step].name,
                first=step,
                last=step + 1,
            )
            for step, layer in enumerate(wholes)
        )
    )
