"""Tracing what torch.fx generated before, and beside it."""

import torch
from torch import fx, nn

from quantenv.graph.functional import functional_graph


@fx.wrap
def doubled(x):
    assert isinstance(x, torch.Tensor)  # a proxy is none: it must not be traced into
    return x * 2


class Marked(nn.Module):
    def forward(self, x):
        return doubled(x) + 1


def generated(graph):
    """The namespace of the code that torch.fx generated of a graph, and what the marked function is called in it."""
    names = graph.forward.__func__.__globals__
    (name,) = (key for key, value in names.items() if value is doubled)
    return names, name


def called(graph):
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def test_marked_functions_stay_whole_when_a_graph_is_traced_again():
    first = functional_graph(Marked())
    again = functional_graph(functional_graph(first))
    assert called(first)[0] is called(again)[0] is doubled
    assert torch.equal(again(torch.ones(2)), torch.full((2,), 3.0))


def test_code_of_other_graphs_is_left_alone_and_remembered():
    first = functional_graph(Marked())
    names, name = generated(first)
    seen = []

    class Looking(nn.Module):
        def forward(self, x):
            seen.append(names[name])
            return doubled(x)

    other = functional_graph(Looking())
    assert seen == [doubled]
    assert called(other) == [doubled]
    assert called(functional_graph(first))[0] is doubled
