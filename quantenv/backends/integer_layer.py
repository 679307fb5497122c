"""A layer in integer arithmetic: exact sums, one multiplier, one rounding; and its batch norm estimated again."""

import torch

from quantenv.backends.accumulators import Accumulators, narrowed
from quantenv.backends.integer_operators import Target
from quantenv.quantization.formats import Codebook
from quantenv.quantization.requantization import multipliers, ratio, requantize
from quantenv.quantization.storage import Storage
from quantenv.quantization.switched import Bits, ChannelMap, Setting, Switched, SwitchedLayer

Moments = tuple[torch.Tensor, torch.Tensor]


class IntegerLayer(Switched):
    """A layer on whole numbers, with the stored tensor behind it if nothing else reads its output."""

    def __init__(
        self,
        layer: SwitchedLayer,
        target: Target | None,
        storage: Storage,
        accumulators: Accumulators,
        moments: Moments | None = None,
        wide: bool = False,
    ) -> None:
        """Makes the layer.

        Args:
            layer: The simulated layer, which knows bits, weights and grids.
            target: The stored tensor that alone reads it, or None.
            storage: How whole numbers are held.
            accumulators: Compute its accumulators.
            moments: Mean and variance of its outputs in the float network, (O,), if its batch norm is to be estimated
                again here.
            wide: Whether its outputs are the network's: float64, the accumulators times their scale.
        """
        super().__init__()
        self.name, self.moments, self.target = layer.name, moments, target
        self._layer, self._storage, self._accumulators, self._wide = (layer,), storage, accumulators, wide

    @property
    def layer(self) -> SwitchedLayer:
        """The simulated layer."""
        return self._layer[0]  # in a tuple: no submodule

    def setting(self, bits: Bits) -> Setting:
        """Returns the layer's setting, and the target's."""
        return self.layer.setting(bits) + (self.target.site.setting(bits) if self.target is not None else ())

    def select(self, setting: Setting) -> None:
        """Chooses weights, grids and the multiplier."""
        layer = self.layer
        self.weight_bits, self.activation_bits, stored_bits, rest = layer.take(setting)
        stored, self._input = layer.source.grids[stored_bits], layer.source.grids[self.activation_bits]
        self._stored = stored if self.activation_bits < stored_bits else None
        self._coarser = ratio(stored.scale, self._input.scale)
        if self.target is not None:
            self.target.select(rest[0])
            rest = rest[1:]
        self._accumulators.select(self.weight_bits, self._input)
        if rest or self.moments is None:
            self.settle(*rest)

    def settle(self, restored: ChannelMap | None = None) -> None:
        """Chooses the bias and the multiplier; see `SwitchedLayer.scales`."""
        scales = self.layer.scales(self.weight_bits, self.activation_bits, restored)
        shape = self.layer.geometry.shape
        self._accumulators.add_bias(torch.from_numpy(scales.bias))
        self._unit = torch.from_numpy(scales.unit).view(shape)
        if self.target is not None:
            input_scale, scale = self._input.scale.numpy(), self.target.grid.scale.numpy()
            self._multiplier = torch.from_numpy(multipliers(scales.weight_scale, input_scale, scale)).view(shape)

    def sums(self, held: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes accumulators without a bias, for their statistics by channel.

        Args:
            held: Whole numbers (B, C, H, W) or (B, ..., F).

        Returns:
            Whole numbers within 2**24, float32 (N, O), and what 1 of them stands for, float64 (O,).
        """
        rounding = self.layer.rounding(self.weight_bits)
        whole = not isinstance(rounding, Codebook)
        numbers, exponent = narrowed(self._accumulators(self._read(held)), self._accumulators.largest, whole)
        unit = rounding.scale.double().flatten() * self._input.scale.double() * 2.0**exponent
        return self.layer.geometry.rows(numbers).flatten(0, -2), unit

    def forward(self, held: torch.Tensor) -> torch.Tensor:
        """Maps whole numbers (B, C, H, W) or (B, ..., F) to whole numbers, or to values where no site follows."""
        sums = self._accumulators(self._read(held))
        if self.target is None:
            values = sums.double().mul_(self._unit)
            return values if self._wide else values.float()
        sums = sums.float()
        return self.target.store(sums if self.target.grid.sign else sums.mul_(self._multiplier))

    def _read(self, held: torch.Tensor) -> torch.Tensor:
        """Brings the input to a coarser grid where it is stored finer than it is read."""
        if self._stored is None:
            return held
        numbers, grid = self._storage.numbers(held, self._stored) * self._coarser, self._input
        return self._storage.hold(requantize(numbers, grid, grid.low, grid.high), grid)
