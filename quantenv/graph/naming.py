"""What the parts of a traced network are called in messages."""

from torch import fx


def name_of(node: fx.Node, graph: fx.GraphModule) -> str:
    """Names a node as its user knows it: a layer by its path, an operation by the layer it comes behind."""
    if node.op == "call_module":
        return f"{type(graph.get_submodule(str(node.target))).__name__} {str(node.target)!r}"
    if node.op == "placeholder":
        return "The network's input"
    name = str(getattr(node.target, "__name__", node.target))
    before = node
    while before.all_input_nodes and before.op != "call_module":
        before = before.all_input_nodes[0]
    behind = name_of(before, graph) if before.op in ("call_module", "placeholder") else "a constant"
    return f"{name} behind {behind[0].lower() + behind[1:] if before.op == 'placeholder' else behind}"
