"""The post-training quantized network: every bit option prepared once, an allocation chosen by swapping tensors."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from quantenv.backends.accumulators import Accumulators, FloatAccumulators
from quantenv.backends.integer_graph import to_integers
from quantenv.backends.reestimation import CHUNK, Reestimation
from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.locks import Lock
from quantenv.quantization.calibration import REESTIMATED_ON, Calibration
from quantenv.quantization.simulated import simulated
from quantenv.quantization.storage import FloatStorage, Storage
from quantenv.quantization.switched import ChannelMap, Setting, Switched, SwitchedLayer


class QuantizedNetwork:
    """A post-training quantized network whose allocation is changed by swapping tensors.

    `PrefixRunner` lets threads share one; whoever selects and calls does both in one thread, or is refused.

    Args:
        calibration: The calibrated network.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._simulated = simulated(calibration)
        self.module = self._build()
        self._switched = [
            module
            for node in self.module.graph.nodes
            if node.op == "call_module" and isinstance(module := self.module.get_submodule(str(node.target)), Switched)
        ]
        self._selected: list[Setting | None] = [None] * len(self._switched)
        self.lock = Lock()
        """Held by a thread from choosing an allocation until it has run."""
        self._thread: int | None = None  # that switched last; None where any may call
        self._reestimation = self._reestimate() if calibration.reestimated else None
        self.select(Allocation.make(calibration.layers, 8, 8))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thread": None}  # another process numbers its threads otherwise

    def _build(self) -> fx.GraphModule:
        return self._simulated

    def _reestimate(self) -> Reestimation:
        inputs, largest = self.calibration.inputs[:REESTIMATED_ON], max(s.features for s in self.calibration.sites)
        program = to_integers(
            self.calibration, self._simulated, self.storage, self._accumulators, self.calibration.reestimated
        )
        return Reestimation(program.module, inputs, max(1, CHUNK // largest))

    @property
    def storage(self) -> Storage:
        """How whole numbers are held where batch norms are estimated again."""
        return FloatStorage()

    def _accumulators(self, layer: SwitchedLayer) -> Accumulators:
        return FloatAccumulators(layer)

    def maps(self, allocations: Sequence[Allocation]) -> list[Mapping[str, ChannelMap]]:
        """Returns what re-estimation of batch norms does, by layer, under each allocation; see `Reestimation.maps`.

        Raises:
            AllocationError: If an allocation is for other layers.
        """
        bits = [allocation.check_fits(self.calibration.layers).bits for allocation in allocations]
        if self._reestimation is None:
            return [{} for _ in bits]
        with self.lock:
            return self._reestimation.maps(bits)

    def settings(self, allocations: Sequence[Allocation]) -> list[tuple[Setting, ...]]:
        """Returns what allocations tell every switched module, in execution order.

        Batch norms, where the scheme estimates them again, are so here; what allocations share is, once.

        Raises:
            AllocationError: If an allocation is for other layers.
        """
        bits = [allocation.check_fits(self.calibration.layers).bits for allocation in allocations]
        settings = [tuple(module.setting(each) for module in self._switched) for each in bits]
        maps = self.maps(allocations)
        names = [module.name for module in self._switched]
        return [
            tuple((*part, of[name]) if name in of else part for name, part in zip(names, setting, strict=True))
            for setting, of in zip(settings, maps, strict=True)
        ]

    def switch(self, settings: Sequence[Setting], start: int = 0) -> None:
        """Switches the modules from the `start`-th on, in execution order; whoever shares the network holds `lock`."""
        self._thread = threading.get_ident()
        for index in range(start, len(self._switched)):
            if self._selected[index] != settings[index]:
                self._switched[index].select(settings[index])
                self._selected[index] = settings[index]

    def select(self, allocation: Allocation) -> None:
        """Gives every layer and site the allocation's bits.

        Raises:
            AllocationError: If the allocation is for other layers.
        """
        (settings,) = self.settings([allocation])
        with self.lock:
            self.switch(settings)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the logits, shape (B, classes), under the selected allocation.

        Raises:
            QuantenvError: If another thread has selected an allocation since this one did.
        """
        with self.lock, torch.inference_mode():
            if self._thread not in (None, threading.get_ident()):
                raise QuantenvError(
                    "The network's allocation was selected by another thread, so its outputs would be those of that "
                    "allocation: give each thread a network of its own, or share an evaluator, which sees to it."
                )
            return self.module(inputs)
