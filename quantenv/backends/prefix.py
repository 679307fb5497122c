"""Running many allocations of one network so that what they share is computed once.

Allocations whose first switched modules have equal settings share the activations up to there. `PrefixRunner` starts
each allocation at the first setting that differs from those of the one before. Given allocations in sorted order this
walks them depth first: each module runs once for each distinct prefix. It keeps the live tensors in front of those
switched modules only at which a later allocation starts: everything else is freed at once, and its memory, still in the
processor's caches, used again.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from quantenv.backends.program import Program, later, starts
from quantenv.backends.quantized import QuantizedNetwork
from quantenv.quantization.switched import Setting


class PrefixRunner:
    """Runs a quantized network's graph, each distinct prefix of settings once.

    Args:
        network: The network; its selected allocation is changed by running.
    """

    def __init__(self, network: QuantizedNetwork) -> None:
        self._network = network
        self._program = Program(network.module)

    def run(self, inputs: torch.Tensor, settings: Sequence[tuple[Setting, ...]]) -> Iterator[torch.Tensor]:
        """Runs one batch under many allocations. Threads may do so at once: each run keeps its own activations.

        Args:
            inputs: Shape (B, ...).
            settings: One `QuantizedNetwork.settings` for each allocation; sorted, they share the most.

        Yields:
            Logits, shape (B, classes), for each allocation, in order. They must not be changed in place.
        """
        program, first = self._program, starts(settings)
        ahead = later(first)
        kept: dict[int, list[Any]] = {}  # registers in front of switched modules, by the modules' indices
        registers = program.registers(inputs)
        for index, (wanted, start) in enumerate(zip(settings, first, strict=True)):
            if start is not None:
                position = 0
                if index:
                    registers, position = kept.pop(start), program.switched[start]
                with self._network.lock, torch.inference_mode():
                    self._network.switch(wanted, start)
                    self._advance(registers, position, ahead[index], kept)
            yield registers[program.output]

    def _advance(
        self, registers: list[Any], position: int, wanted: Collection[int], kept: dict[int, list[Any]]
    ) -> None:
        """Runs the steps from `position` to the end and keeps the registers in front of `wanted` switched modules."""
        for module in sorted(wanted):
            if (stop := self._program.switched[module]) >= position:
                self._program.run(registers, position, stop)
                kept[module], position = registers.copy(), stop
        self._program.run(registers, position, len(self._program.steps))
