"""The quantized network in integer arithmetic: what deployment computes, equal to the bit on every CPU.

Every stored tensor holds whole numbers of its grid. A layer sums products of whole numbers exactly, adds its bias, a
whole number, and takes the sum to the next grid by one multiplier and one rounding: see
`quantenv.quantization.requantization`; sums of two tensors and averages do likewise: `integer_operators`. So neither
the CPU's vector instructions nor threads nor batches change a bit. What else a network computes, such as a softmax,
stays in float: `IntegerNetwork.float_operators` names it, and where there is any, last digits are the machine's.
"""

import functools

from torch import fx

from quantenv.backends.accumulators import Accumulators, FloatAccumulators
from quantenv.backends.integer_graph import to_integers
from quantenv.backends.kernels import KernelAccumulators, kernel_obstacle
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.core.errors import QuantenvError
from quantenv.quantization.calibration import Calibration
from quantenv.quantization.simulated import simulated
from quantenv.quantization.storage import CodeStorage, FloatStorage, Storage
from quantenv.quantization.switched import SwitchedLayer

#: What computes accumulators, by name; all give the same numbers.
KERNELS = ("float32", "int8")


@functools.lru_cache(maxsize=4)
def float_operators(calibration: Calibration) -> tuple[str, ...]:
    """Returns what of a network stays in float: operators by name, in execution order; found once."""
    return to_integers(calibration, simulated(calibration), FloatStorage(), FloatAccumulators).float_operators


class IntegerNetwork(QuantizedNetwork):
    """A quantized network in integer arithmetic.

    Args:
        calibration: The calibrated network.
        kernels: ``int8`` kernels, ``float32`` ones, or ``auto``: int8 where this machine has them, which is twice as
            fast with VNNI instructions and without. The numbers are the same.

    Raises:
        QuantenvError: If the kernels cannot run here, or the scheme's weights lie on no integer grid.
    """

    def __init__(self, calibration: Calibration, kernels: str = "auto") -> None:
        if (obstacle := calibration.scheme.integer_obstacle) is not None:
            raise QuantenvError(f"The network has no integer arithmetic: {obstacle}. Use backend 'float'.")
        missing = kernel_obstacle()
        if kernels not in ("auto", *KERNELS):
            raise QuantenvError(f"Unknown kernels {kernels!r}; expected auto, {' or '.join(KERNELS)}.")
        if kernels == "int8" and missing is not None:
            raise QuantenvError(f"Int8 kernels cannot run here: {missing}. Use kernels 'float32': same numbers.")
        self.kernels = "float32" if kernels == "float32" or missing is not None else "int8"
        super().__init__(calibration)

    @property
    def float_operators(self) -> tuple[str, ...]:
        """What stays in float: operators by name, in execution order."""
        return float_operators(self.calibration)

    @property
    def exact(self) -> bool:
        """Whether everything from the quantized input to the outputs is integer arithmetic."""
        return not self.float_operators

    @property
    def storage(self) -> Storage:
        """How whole numbers are held."""
        return CodeStorage() if self.kernels == "int8" else FloatStorage()

    def _build(self) -> fx.GraphModule:
        return to_integers(self.calibration, self._simulated, self.storage, self._accumulators).module

    def _accumulators(self, layer: SwitchedLayer) -> Accumulators:
        return KernelAccumulators(layer) if self.kernels == "int8" else FloatAccumulators(layer)
