import dataclasses

import pytest

from quantenv.core.activations import Activations, Product, chain
from quantenv.core.channel_groups import split_layers
from quantenv.core.errors import QuantenvError
from tests.synthetic import synthetic_layers

LAYERS = synthetic_layers(3)
CHAIN = chain(LAYERS)


def test_layers_alone_are_taken_for_a_chain():
    for step, (tensor, layer) in enumerate(zip(CHAIN.tensors, LAYERS, strict=True)):
        assert (tensor.layers, tensor.shared) == ((layer.name,), False)
        assert tensor.elements == tensor.reads == layer.input_elements
        assert (tensor.first, tensor.last) == (step, step + 1)
    assert [tensor.written for tensor in CHAIN.tensors] == [False, True, True]
    assert [tensor.charged_to for tensor in CHAIN.tensors] == ["layer0", "layer0", "layer1"]
    assert CHAIN.share_at_8_bits == CHAIN.macs == 0


def test_channel_groups_read_one_tensor():
    groups = split_layers(LAYERS, {"layer0": [[0], list(range(1, LAYERS[0].out_channels))]})
    assert chain(groups) == CHAIN
    assert CHAIN.check_fits(groups) is CHAIN


@pytest.mark.parametrize(
    "tensors",
    [
        CHAIN.tensors[:2],
        (*CHAIN.tensors, CHAIN.tensors[0]),
        tuple(dataclasses.replace(tensor, charged_to="other") for tensor in CHAIN.tensors),
        tuple(dataclasses.replace(tensor, layers=("other",)) for tensor in CHAIN.tensors),
    ],
)
def test_tensors_of_other_layers_are_refused(tensors):
    with pytest.raises(QuantenvError, match="other layers than the network's"):
        Activations(tensors).check_fits(LAYERS)


@pytest.mark.parametrize("changes", [{"elements": 0}, {"reads": -1}, {"first": 1}, {"last": 9}])
def test_impossible_tensors_are_refused(changes):
    tensors = (dataclasses.replace(CHAIN.tensors[0], **changes), *CHAIN.tensors[1:])
    with pytest.raises(QuantenvError, match="impossible size, step or no reader"):
        Activations(tensors).check_fits(LAYERS)
    with pytest.raises(QuantenvError, match="negative MACs"):
        Activations(CHAIN.tensors, (Product("scores", -1, "layer0"),)).check_fits(LAYERS)
