"""A quantized network on codes: what is stored travels as whole numbers of one byte, as integer hardware holds it.

Codes are uint8: the grid's whole number minus its lowest. What computes in float (adds, pools, other operations)
decodes them and encodes its outputs, as the simulation in float does; sums in blocks that stay in the CPU's cache.
"""

import operator
from collections.abc import Callable, Sequence

import torch
from torch import fx, nn

from quantenv.quantize.quantizers import Grid
from quantenv.quantize.switched import Bits, Setting, Switched, SwitchedLayer, SwitchedSite

#: Calls that may move codes as they are; max pools and padding move decoded values instead.
_CODE_MOVES = {
    operator.getitem,
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
}
_CODE_MOVE_METHODS = {"flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"}
_CODE_MOVE_MODULES = (nn.Flatten, nn.Identity, nn.Dropout)
#: Targets of nodes that add two tensors, by kind of node.
_SUMS = {"call_function": (operator.add, torch.add), "call_method": ("add",)}
#: Values of a sum that each thread computes at a time: 512 KiB of floats. Those of a batch of 64 images of ResNet-20's
#: first stage, all at once, took twice as long on one core and slowed the other one down.
BLOCK = 1 << 17


def encode(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the uint8 codes of a float tensor: grid number minus ``grid.low`` (sign grids: 0 and 2)."""
    if grid.sign:
        return (x >= 0).to(torch.uint8).mul_(2)
    return x.div(grid.scale).round_().clamp_(grid.low, grid.high).sub_(grid.low).to(torch.uint8)


def decode(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the float32 values of uint8 codes."""
    values = codes.float()
    if grid.low:
        values = values.add_(grid.low)
    return values.mul_(grid.scale)


class CodedSum(Switched):
    """A sum of two tensors with the site behind it, block by block: the same values as all at once."""

    def __init__(self, terms: Sequence[SwitchedSite | None], target: SwitchedSite) -> None:
        """Makes the sum.

        Args:
            terms: Whose codes each term holds; None if it holds float values.
            target: The site behind.
        """
        super().__init__()
        self._terms, self._target = tuple(terms), (target,)

    def setting(self, bits: Bits) -> Setting:
        """Returns the stored bits of the coded terms and of the target."""
        sites = [site for site in self._terms if site is not None]
        return tuple(value for site in [*sites, *self._target] for value in site.setting(bits))

    def select(self, setting: Setting) -> None:
        """Chooses the grids."""
        stored = iter(setting)
        self._grids = [None if site is None else site.grids[next(stored)] for site in self._terms]
        self._output = self._target[0].grids[next(stored)]

    def forward(self, *terms: torch.Tensor) -> torch.Tensor:
        """Adds codes or float values (B, ...) to codes."""
        terms = torch.broadcast_tensors(*terms)
        codes = torch.empty_like(terms[0], dtype=torch.uint8)
        rows = max(1, torch.get_num_threads() * BLOCK * len(codes) // max(1, codes.numel()))
        for block, *parts in zip(*(each.split(rows) for each in (codes, *terms)), strict=True):
            first, second = (
                part if grid is None else decode(part, grid) for part, grid in zip(parts, self._grids, strict=True)
            )
            block.copy_(encode(first + second, self._output))
        return codes


class Encode(Switched):
    """Float values to the codes of a site."""

    def __init__(self, site: SwitchedSite) -> None:
        super().__init__()
        self._site = (site,)

    def setting(self, bits: Bits) -> Setting:
        """Returns the site's setting."""
        return self._site[0].setting(bits)

    def select(self, setting: Setting) -> None:
        """Chooses the site's grid."""
        self._grid = self._site[0].grids[setting[0]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encodes."""
        return encode(x, self._grid)


class Decode(Encode):
    """Codes of a site to float values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Decodes."""
        return decode(x, self._grid)


def to_codes(
    source: fx.GraphModule, make_layer: Callable[[SwitchedLayer, SwitchedSite | None], Switched]
) -> fx.GraphModule:
    """Rewrites the float graph of a `QuantizedNetwork` node by node into one on codes.

    Args:
        source: The graph, of `SwitchedLayer` and `SwitchedSite`; not changed, but its modules are shared.
        make_layer: Makes what maps a layer's input codes to those of the site that alone reads its output, or to floats
            where there is none.

    Returns:
        A new graph module.
    """
    modules = dict(source.named_modules())
    result, graph = fx.GraphModule(source, source.graph), fx.Graph()  # with its modules, parameters and buffers
    values: dict[fx.Node, fx.Node] = {}
    coded: dict[fx.Node, SwitchedSite] = {}  # nodes of the new graph that hold codes, and whose

    def insert(module: nn.Module, name: str, *arguments: fx.Node) -> fx.Node:
        result.add_submodule(name, module)
        return graph.call_module(name, arguments)

    def decoded(node: fx.Node) -> fx.Node:
        return insert(Decode(coded[node]), f"decode_{len(graph.nodes)}", node) if node in coded else node

    def site_behind(node: fx.Node) -> SwitchedSite | None:
        """Returns the site that alone reads a node, if one does."""
        users = list(node.users)
        behind = modules.get(str(users[0].target)) if len(users) == 1 and users[0].op == "call_module" else None
        return behind if isinstance(behind, SwitchedSite) else None

    for node in source.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, SwitchedSite):
            argument = values[node.args[0]]
            if coded.get(argument) is not module:  # otherwise the layer in front has encoded it already
                argument = insert(Encode(module), f"encode_{len(graph.nodes)}", decoded(argument))
                coded[argument] = module
            values[node] = argument
        elif isinstance(module, SwitchedLayer):
            argument = values[node.args[0]]
            if argument not in coded:
                argument = insert(Encode(module.source), f"encode_{len(graph.nodes)}", argument)
                coded[argument] = module.source
            target = site_behind(node)
            values[node] = insert(make_layer(module, target), str(node.target).replace(".", "_"), argument)
            if target is not None:
                coded[values[node]] = target
        elif _is_sum(node) and (target := site_behind(node)) is not None:
            terms = [values[term] for term in node.args]
            summed = CodedSum([coded.get(term) for term in terms], target)
            values[node] = insert(summed, f"sum_{len(graph.nodes)}", *terms)
            coded[values[node]] = target
        elif _moves_codes(node, module) and values[node.args[0]] in coded:
            values[node] = graph.node_copy(node, lambda n: values[n])
            coded[values[node]] = coded[values[node.args[0]]]
        else:
            values[node] = graph.node_copy(node, lambda n: decoded(values[n]))
    graph.lint()
    result.graph = graph
    result.delete_all_unused_submodules()
    return result


def _is_sum(node: fx.Node) -> bool:
    """Says whether a node adds two tensors and does nothing else."""
    terms = [value for value in node.args if isinstance(value, fx.Node)]
    return node.target in _SUMS.get(node.op, ()) and len(terms) == len(node.args) == 2 and not node.kwargs


def _moves_codes(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_module":
        return isinstance(module, _CODE_MOVE_MODULES)
    return node.target in (_CODE_MOVES if node.op == "call_function" else _CODE_MOVE_METHODS)
