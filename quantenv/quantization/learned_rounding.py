"""How a scheme's AdaRound or BRECQ step rounds weights: learned on first use, and kept in memory.

What is learned depends on the folded network, its calibration inputs and the bits alone, never on the rest of an
allocation: so it is learned once for each layer (or block) and bit-width. A prepared network holds all of it.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from quantenv.core.locks import PREPARING
from quantenv.quantization.adaround import adaround
from quantenv.quantization.moments import InputMoments
from quantenv.quantization.reconstruction import Block, find_blocks, reconstruct

if TYPE_CHECKING:
    from quantenv.quantization.calibration import Calibration

logger = logging.getLogger(__name__)

#: Bit-widths at which rounding is learned. At 8 bits weights are rounded to nearest: what could be gained there is less
#: than what rounding activations to 8 bits changes, and every evaluator begins with all layers at 8 bits.
LEARNED_BITS = range(1, 8)
#: Seconds between two lines of the log on how far it is.
TELL_EVERY = 10.0


class LearnedRounding:
    """The learned rounding of a calibrated network's weights. Threads may share it.

    Args:
        calibration: The network, whose scheme has one of the steps ``adaround`` and ``brecq``.
    """

    def __init__(self, calibration: "Calibration") -> None:
        self._calibration = calibration
        self._step = "brecq" if calibration.scheme.brecq else "adaround"
        self._known: dict[tuple[str, int], torch.Tensor] = {}
        self._moments = InputMoments(calibration)
        self._told: dict[int, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_moments": InputMoments(self._calibration)}  # without what it measured

    def codes(self, layer: str, bits: int) -> torch.Tensor:
        """Returns the whole numbers of a layer's grid that its weights are rounded to, int8, the shape of the weights.

        Args:
            layer: Its name.
            bits: One of `LEARNED_BITS`.
        """
        with PREPARING:
            if (layer, bits) not in self._known:
                learned = self._part_of(layer, bits)
                self._known |= {(name, bits): codes for name, codes in learned.items()}
            return self._known[layer, bits]

    @cached_property
    def _blocks(self) -> tuple[Block, ...]:
        return find_blocks(self._calibration)

    def _part_of(self, layer: str, bits: int) -> dict[str, torch.Tensor]:
        """Learns the rounding of a layer, or of its block."""
        names = [each.name for each in self._calibration.modules]
        blocks = [block.layers for block in self._blocks] if self._step == "brecq" else [(name,) for name in names]
        (place,) = (index for index, block in enumerate(blocks) if layer in block)
        self._tell(place, len(blocks), bits)
        with _one_thread(), torch.inference_mode(False), torch.no_grad():
            return self._learned(place, bits)

    def _learned(self, place: int, bits: int) -> dict[str, torch.Tensor]:
        calibration, moments = self._calibration, self._moments
        if self._step == "brecq":
            found = reconstruct(calibration, self._blocks[place], bits, moments)
        else:
            name = calibration.modules[place].name
            weight = calibration.graph.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            found = {name: adaround(weight.detach(), calibration.linear_grids[name][bits], moments.of(name))}
        return {name: codes.to(torch.int8) for name, codes in found.items()}

    def _tell(self, place: int, count: int, bits: int) -> None:
        now = time.monotonic()
        if bits not in self._told:
            self._told[bits] = now
            what = "blocks" if self._step == "brecq" else "layers"
            logger.info("Learning how to round weights to %d bits (%s, %d %s, once).", bits, self._step, count, what)
        elif now - self._told[bits] > TELL_EVERY:
            self._told[bits] = now
            logger.info("Learning how to round weights to %d bits: %d of %d done.", bits, place, count)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Has torch compute in one thread: a last digit that the number of threads changes can round a weight otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
