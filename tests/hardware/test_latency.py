import itertools
import math

import numpy as np
import pytest

from quantenv.core.activations import Activations, Product, StoredTensor, chain
from quantenv.core.layers import LayerSpec
from quantenv.hardware.latency import LinearLatency, RooflineLatency
from quantenv.hardware.workload import Workload

#: A 3x3 convolution from 4 to 8 channels on 10x10.
CONV = LayerSpec("conv", "conv", 4, 8, (3, 3), (1, 1), 1, (4, 10, 10), (8, 10, 10), 288, 8, 28_800)
ANY_BITS = tuple(range(1, 9))
#: It reads a tensor of its own (400 elements), and writes one that an add and a float operation read: at 8 bits.
OWN = StoredTensor("x", 400, ("conv",), False, 400, False, "conv", 0, 1)
SHARED = StoredTensor("conv", 800, (), True, 1600, True, "conv", 1, 2)
WORK = Workload([CONV], Activations((OWN, SHARED)))


def test_linear_latency_by_hand():
    values = LinearLatency(2e-9, 3e-9, 0.3).table(WORK)[0]
    always = 800 + 1600  # written once, read twice
    assert values[7, 7] == pytest.approx(2e-9 * (288 + 400 + always) + 3e-9 * 28_800)
    assert values[3, 3] == pytest.approx(2e-9 * ((288 + 400) / 2 + always) + 3e-9 * 28_800 * 0.3)
    # 2 x 8 bits are the same product as 4 x 4.
    assert values[1, 7] == pytest.approx(2e-9 * (288 / 4 + 400 + always) + 3e-9 * 28_800 * 0.3)
    exponent = math.log(0.3) / math.log(0.25)
    assert values[2, 4] == pytest.approx(
        2e-9 * (288 * 3 / 8 + 400 * 5 / 8 + always) + 3e-9 * 28_800 * (15 / 64) ** exponent
    )


def test_roofline_is_bound_by_memory_or_by_compute():
    compute = RooflineLatency(1e15, 1e9, ANY_BITS, ANY_BITS).table(WORK)[0]
    np.testing.assert_allclose(compute, 28_800e-9 * np.outer(ANY_BITS, ANY_BITS) / 64)
    memory = RooflineLatency(1e9, 1e15, ANY_BITS, ANY_BITS).table(WORK)[0]
    weight, activation = np.meshgrid(ANY_BITS, ANY_BITS, indexing="ij")
    np.testing.assert_allclose(memory, ((288 * weight + 400 * activation) / 8 + 2400) * 1e-9)


def test_a_depthwise_layer_is_memory_bound_where_a_dense_one_is_not():
    depthwise = LayerSpec("dw", "depthwise", 64, 64, (3, 3), (1, 1), 64, (64, 8, 8), (64, 8, 8), 576, 64, 36_864)
    dense = LayerSpec("conv", "conv", 64, 64, (3, 3), (1, 1), 1, (64, 8, 8), (64, 8, 8), 36_864, 64, 2_359_296)
    narrow, wide = RooflineLatency(1e9, 2e10, (8,), (8,)).table(
        Workload([depthwise, dense], chain([depthwise, dense]))
    )[:, 7, 7]
    assert narrow == pytest.approx((576 + 4096) / 1e9)
    assert wide == pytest.approx(2_359_296 / 2e10)


def test_native_widths_round_up():
    fused = RooflineLatency(1e15, 1e9, (2, 4, 8), (2, 4, 8)).table(WORK)[0]
    width = {1: 2, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
    for weight, activation in itertools.product(ANY_BITS, ANY_BITS):
        expected = 28_800e-9 * width[weight] * width[activation] / 64
        assert fused[weight - 1, activation - 1] == pytest.approx(expected)
    assert np.ptp(RooflineLatency(1e15, 1e9, (8,), (8,)).table(WORK)) == 0


def test_products_take_the_time_of_8_bits():
    work = Workload([CONV], Activations((OWN, SHARED), (Product("scores", 1000, "conv"),)))
    linear = LinearLatency(2e-9, 3e-9, 0.3)
    np.testing.assert_allclose(linear.table(work) - linear.table(WORK), 3e-9 * 1000, rtol=1e-9)
    compute = RooflineLatency(1e15, 1e9, ANY_BITS, ANY_BITS)
    np.testing.assert_allclose(compute.table(work) - compute.table(WORK), 1e-6, rtol=1e-9)
    memory = RooflineLatency(1e9, 1e15, ANY_BITS, ANY_BITS)
    assert (memory.table(work) == memory.table(WORK)).all()
