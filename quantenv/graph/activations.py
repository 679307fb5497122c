"""A network's stored tensors and products, found at the sites where the simulated network is quantized."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from quantenv.core.activations import Activations, Product, StoredTensor
from quantenv.graph.layers import describe_plain
from quantenv.graph.plain_network import plain_network
from quantenv.graph.products import operands
from quantenv.graph.sites import Site, Values, find_sites, is_layer, keep_exact, multiplies, pools
from quantenv.graph.tracing import fold_linear_norms, trace

if TYPE_CHECKING:
    pass


def find_activations(network: nn.Module, example: torch.Tensor) -> Activations:
    """Finds the tensors that a quantized network stores, who reads them and how long, and its products of activations.

    Nothing is calibrated: the graph is the one that calibration measures ranges on.

    A reader that takes only a part of a tensor, such as a class token or the keys among queries, keys and values, reads
    that part; what pools reads all. Max pools, reshapes, padding and softmax's scores are no tensors of their own, but
    done while reading or writing one (`quantenv.graph.sites`). A tensor lives until everything that is made of it is
    written. Additions in place are not assumed.

    Args:
        network: A network.
        example: A batch of inputs, shape (B, ...).

    Returns:
        The activations.

    Raises:
        UnsupportedLayerError: If the network cannot be traced.
    """
    network = plain_network(network, example)
    layers = describe_plain(network, example)
    example = example[:1]
    graph = trace(network)
    fold_linear_norms(graph, example)
    keep_exact(graph, example)
    values = _Run(graph)
    with torch.no_grad():
        values.run(example)
    sites = find_sites(graph, example)
    places = {site.node: step for step, site in enumerate(sites)}
    modules = dict(graph.named_modules())
    charged, latest = {}, layers[0].name
    for node in graph.graph.nodes:
        latest = str(node.target) if is_layer(node, modules) else latest
        charged[node.name] = latest
    nodes = {node.name: node for node in graph.graph.nodes}
    tensors = tuple(_stored(nodes[site.node], site, places, values, charged[site.node]) for site in sites)
    products = tuple(Product(name, macs, charged[name]) for name, macs in values.macs.items())
    return Activations(tensors, products).check_fits(layers)


class _Run(Values):
    """Also remembers the multiply-accumulate operations of products, by name of the node."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, 1)
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> object:
        factors = []
        if multiplies(n, self.modules) and not is_layer(n, self.modules):
            factors = [self.env[each] for each in operands(n)]
        value = super().run_node(n)
        if factors:
            assert isinstance(value, torch.Tensor)
            self.macs[n.name] = product_macs(n, factors, value)
        return value


def _stored(node: fx.Node, site: Site, places: dict[str, int], values: Values, charged_to: str) -> StoredTensor:
    return StoredTensor(
        name=site.node,
        elements=site.features,
        layers=site.layers,
        shared=site.shared,
        reads=_reads(node, site.features, values),
        written=node.op != "placeholder" and node not in values.constants,
        charged_to=charged_to,
        first=places[site.node],
        last=_last_read(node, places, values),
    )


def _reads(node: fx.Node, elements: int, values: Values) -> int:
    """Elements that a stored tensor's readers read, directly or through moving nodes."""
    taken: dict[fx.Node, int] = {}
    pending = [(node, elements, elements)]  # what is read so far, and how much of it is left
    seen: set[fx.Node] = {node}
    while pending:
        source, count, left = pending.pop(0)
        for user in source.users:
            if user not in values.carriers or user.op == "output":
                continue
            if user not in values.moving:
                taken[user] = taken.get(user, 0) + count  # each part that one operation takes
            elif user not in seen:
                seen.add(user)
                size = values.features.get(user.name, left)
                part = count if pools(user, values.modules) or size >= left else -(-count * size // left)
                pending.append((user, part, size))
    return sum(min(count, elements) for count in taken.values())


def _last_read(node: fx.Node, places: dict[str, int], values: Values) -> int:
    """The step at which the last of what is made of a stored tensor is written itself; the last one for outputs."""
    last, pending, seen = places[node.name], list(node.users), set[fx.Node]()
    while pending:
        user = pending.pop()
        if user in seen or user not in values.carriers:
            continue
        seen.add(user)
        if user.name in places:
            last = max(last, places[user.name])
        elif user.op == "output":
            last = len(places)
        else:
            pending += user.users
    return last


def product_macs(node: fx.Node, factors: list[Any], output: torch.Tensor) -> int:
    """Returns the multiply-accumulate operations of a product.

    Args:
        node: Calls a function or method that multiplies tensors.
        factors: What it multiplies.
        output: What it made of them.
    """
    name = str(getattr(node.target, "__name__", node.target))
    first, last = factors[0].shape, factors[-1].shape
    if name == "einsum":
        return _einsum_macs(str(node.args[0]), [factor.shape for factor in factors])
    if name == "scaled_dot_product_attention":
        key, value = factors[1].shape, factors[2].shape
        return math.prod(first[:-1]) * key[-2] * (first[-1] + value[-1])
    if name == "tensordot":
        return math.isqrt(math.prod(first) * math.prod(last) * output.numel())
    if name == "bilinear":
        return output.numel() * math.prod(last[1:])
    if name.startswith("conv_transpose"):
        return math.prod(first) * math.prod(last[1:])
    if name.startswith("conv"):
        return output.numel() * math.prod(last[1:])
    if name == "__rmatmul__":
        first = last
    return output.numel() * first[-1]


def _einsum_macs(equation: str, shapes: list[torch.Size]) -> int:
    """The product of the sizes of all labels; the dimensions that dots stand for are labels, from the right."""
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.replace(" ", "").split("->")[0].split(","), shapes, strict=True):
        before, dots, after = term.partition("...")
        inner = shape[len(before) : len(shape) - len(after)] if dots else ()
        labels = [*before, *(f"...{place}" for place in reversed(range(len(inner)))), *after]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
    return math.prod(sizes.values())
