"""Networks as people write them, brought into the form that is described, traced and quantized."""

from quantenv.plain.functional import functional_graph
from quantenv.plain.modules import expressed
from quantenv.plain.network import plain_network

__all__ = ["expressed", "functional_graph", "plain_network"]
