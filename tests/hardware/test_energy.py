import math

import numpy as np
import pytest

from quantenv.core.activations import Activations, Product, chain
from quantenv.core.layers import LayerSpec
from quantenv.hardware import compile_costs, load_device
from quantenv.hardware.energy import AnalyticEnergy
from tests.synthetic import chain_costs

#: A 3x3 convolution from 4 to 8 channels on 10x10.
CONV = LayerSpec("conv", "conv", 4, 8, (3, 3), (1, 1), 1, (4, 10, 10), (8, 10, 10), 288, 8, 28_800)


def test_mac_energy_hits_published_widths_and_is_log_linear_between():
    energy = AnalyticEnergy(6.4e-10, ((2, 1e-14), (4, 5e-14), (8, 2e-13), (16, 1.1e-12)))
    bits = np.array([2.0, 4.0, 8.0, 16.0, 3.0, 6.0, 1.0])
    expected = [1e-14, 5e-14, 2e-13, 1.1e-12, math.sqrt(1e-14 * 5e-14), math.sqrt(5e-14 * 2e-13), 1e-14 / math.sqrt(5)]
    np.testing.assert_allclose(energy.mac_energy(bits), expected)
    assert AnalyticEnergy(1.0, ((8, 2e-13),)).mac_energy(np.array([1.0, 8.0])).tolist() == [2e-13, 2e-13]


def test_generic_energy_by_hand():
    table = chain_costs([CONV], load_device("generic"))["energy"]
    assert table.cost([8], [8]) == pytest.approx(640e-12 * (288 + 400) + 0.2e-12 * 28_800)
    # 2 and 8 bits have the geometric mean 4.
    assert table.cost([2], [8]) == pytest.approx(640e-12 * (288 / 4 + 400) + 0.05e-12 * 28_800)


def test_products_take_the_energy_of_8_bits():
    with_scores = Activations(chain([CONV]).tensors, (Product("scores", 1000, "conv"),))
    table = compile_costs([CONV], with_scores, load_device("generic"))["energy"]
    np.testing.assert_allclose(
        table.values - chain_costs([CONV], load_device("generic"))["energy"].values, 0.2e-12 * 1000
    )
