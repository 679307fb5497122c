import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantenv.core.errors import QuantenvError
from quantenv.core.layers import LayerSpec
from quantenv.hardware import METRICS, CostTable, device_names, load_device, overhead_bytes
from quantenv.hardware.devices import Device
from tests.synthetic import chain_costs, synthetic_layers

#: A 3x3 convolution from 4 to 8 channels on 10x10 and a linear layer from 8 to 10: costs by hand below.
CONV = LayerSpec("conv", "conv", 4, 8, (3, 3), (1, 1), 1, (4, 10, 10), (8, 10, 10), 288, 8, 28_800)
LINEAR = LayerSpec("fc", "linear", 8, 10, (1, 1), (0, 0), 1, (8,), (10,), 80, 10, 80)
DEVICES = {name: load_device(name) for name in device_names()}
GENERIC = DEVICES["generic"]
BARE = Device("bare", "Defines no latency and no energy.", (8,), (8,))


def layers_of():
    return st.builds(synthetic_layers, count=st.integers(1, 8), seed=st.integers(0, 10_000))


def test_size_and_bops_by_hand():
    tables = chain_costs([CONV, LINEAR], BARE)
    assert tables["size"].cost([3, 8], [2, 5]) == 288 * 3 / 8 + 80
    assert tables["bops"].cost([3, 8], [2, 5]) == 28_800 * 3 * 2 + 80 * 8 * 5
    assert tables["size"].reference == 368
    assert tables["bops"].reference == 28_880 * 64


def test_size_of_codebooks_is_indices_and_centroids():
    plain, tables = chain_costs([CONV, LINEAR], GENERIC), chain_costs([CONV, LINEAR], GENERIC, codebooks=True)
    assert tables["size"].cost([3, 8], [2, 5]) == 288 * 3 / 8 + 8 * 4 + 80 + 256 * 4
    assert (np.diff(tables["size"].values, axis=1) > 0).all()
    for metric in METRICS[1:-1]:
        np.testing.assert_array_equal(tables[metric].values, plain[metric].values)
    # Han et al. 2016, section 3.1: 16 weights of 32 bits with 4 centroids take 16 * 2 + 4 * 32 bits, 3.2 times less.
    layer = LayerSpec("fc", "linear", 4, 4, (1, 1), (0, 0), 1, (4,), (4,), 16, 0, 16)
    assert 16 * 4 / chain_costs([layer], BARE, codebooks=True)["size"].cost([2], [8]) == pytest.approx(3.2)


def test_overhead_is_a_float_scale_per_channel_and_an_int32_bias():
    assert overhead_bytes([CONV, LINEAR]) == 4 * (8 + 8) + 4 * (10 + 10)
    assert isinstance(overhead_bytes([CONV]), int)


@pytest.mark.parametrize("name", DEVICES)
@given(layers=layers_of())
def test_formula_tables_never_fall_with_more_bits(name, layers):
    for metric, table in chain_costs(layers, DEVICES[name]).items():
        values = table.rows.values
        slack = 1e-12 * values.max()
        assert (np.diff(values, axis=2) >= -slack).all()
        assert (np.diff(values, axis=3) >= -slack).all()
        assert (values > 0).all() or metric == "memory"  # a layer takes memory at some steps


@given(layers=layers_of(), seed=st.integers(0, 1000))
def test_a_network_costs_the_sum_of_its_layers(layers, seed):
    weight, activation = np.random.default_rng(seed).integers(1, 9, (2, len(layers)))
    for metric, table in chain_costs(layers, GENERIC).items():
        if metric == "memory":
            continue  # a maximum
        alone = [
            chain_costs([layer], GENERIC)[metric].cost([w], [a])
            for layer, w, a in zip(layers, weight, activation, strict=True)
        ]
        written = {"latency": GENERIC.latency.per_byte, "energy": GENERIC.energy.per_byte}.get(metric, 0.0)
        alone += [  # nobody writes a layer's input where it is alone
            written * layer.input_elements * bits / 8 for layer, bits in zip(layers[1:], activation[1:], strict=True)
        ]
        assert table.cost(weight, activation) == pytest.approx(math.fsum(alone), rel=1e-12)


def test_only_defined_metrics_in_the_order_of_metrics():
    assert tuple(chain_costs([CONV], GENERIC)) == METRICS
    assert tuple(chain_costs([CONV], load_device("int8_cpu"))) == ("size", "bops", "latency", "memory")
    assert tuple(chain_costs([CONV], BARE)) == ("size", "bops", "memory")


@pytest.mark.parametrize("bits", [[0, 8], [-1, 8], [9, 8], [8], [8, 8, 8], [8.0, 8.0], []])
def test_bits_that_are_no_bits_never_index_a_table(bits):
    table = chain_costs([CONV, LINEAR], BARE)["size"]
    with pytest.raises(QuantenvError, match="bits"):
        table.cost(bits, [8, 8])
    with pytest.raises(QuantenvError, match="bits"):
        table.cost([8, 8], bits)


def test_tables_are_read_only_copies_and_checked():
    values = np.ones((2, 8, 8))
    table = CostTable("size", values)
    values[:] = 5
    assert table.reference == 2
    with pytest.raises(ValueError, match="read-only"):
        table.values[0, 0, 0] = 3
    with pytest.raises(QuantenvError, match=r"'sizes'.*Did you mean 'size'"):
        CostTable("sizes", values)
    with pytest.raises(QuantenvError, match="shape"):
        CostTable("size", np.ones((2, 8, 7)))
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(QuantenvError, match="non-finite"):
            CostTable("size", np.full((2, 8, 8), bad))
