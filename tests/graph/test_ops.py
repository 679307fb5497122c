import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quantenv.graph.ops import MODULES, OPS, Canonical, geometry_of, macs, op_of
from quantenv.quantization.moments import patches

CONVOLUTIONS = [kind for kind, op in OPS.items() if op.dims]


@st.composite
def layers(draw):
    """A layer and an input of it."""
    kind = draw(st.sampled_from(list(OPS)))
    op = OPS[kind]
    batch = draw(st.integers(1, 3))
    if not op.dims:
        shape = draw(st.lists(st.integers(1, 4), max_size=2))
        layer = nn.Linear(3, draw(st.integers(1, 4)), bias=draw(st.booleans()))
        return layer, torch.randn(batch, *shape, 3)
    groups = draw(st.sampled_from([1, 2]))
    each = [draw(st.integers(1, 3)) for _ in range(op.dims)]
    stride = tuple(draw(st.integers(1, 3)) for _ in range(op.dims))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(op.dims))
    more = {}
    if op.transposed:
        more = {
            "output_padding": tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        }
    layer = kind(
        2 * groups,
        draw(st.integers(1, 3)) * groups,
        tuple(each),
        stride=stride,
        padding=tuple(draw(st.integers(0, 2)) for _ in range(op.dims)),
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        **more,
    )
    return layer, torch.randn(batch, 2 * groups, *(draw(st.integers(6, 8)) for _ in range(op.dims)))


@settings(max_examples=150)
@given(layers())
def test_a_layer_of_weights_by_output_channel_computes_what_torch_does(case):
    layer, x = case
    expected = layer(x)
    module = Canonical(layer)
    geometry = module.geometry
    assert torch.equal(module(x), expected)
    assert torch.equal(geometry.run(x, module.weight, module.bias), expected)
    assert module.weight.shape[0] == expected.shape[geometry.channels]
    assert geometry_of(module) == geometry_of(layer)
    # One output channel depends on its own weights alone, and a value for each goes with outputs.
    changed = module.weight.detach().clone()
    changed[0] += 1
    moved = (geometry.run(x, changed, module.bias) != expected).movedim(geometry.channels, -1)
    assert not moved[..., 1:].any()
    assert (expected * torch.zeros(len(changed)).view(geometry.shape)).shape == expected.shape
    assert geometry.rows(expected).shape[-1] == len(changed)


@settings(max_examples=100)
@given(layers())
def test_operations_are_those_that_torch_counts(case):
    layer, x = case
    with FlopCounterMode(display=False) as counter:
        output = layer(x[:1])
    counted = macs(layer, x.shape[1:], output.shape[1:])
    assert 2 * counted == counter.get_total_flops()


@settings(max_examples=150)
@given(layers())
def test_patches_are_what_weights_are_multiplied_by(case):
    layer, x = case
    canonical = Canonical(layer)
    seen = patches(canonical, x, 1 << 20)  # (G, K, places)
    weight = canonical.weight.detach().reshape(len(seen), -1, seen.shape[1])
    computed = (weight @ seen).flatten(0, 1).T
    outputs = canonical.geometry.rows(canonical.geometry.run(x, canonical.weight)).flatten(0, -2)
    torch.testing.assert_close(computed, outputs.detach(), rtol=1e-4, atol=1e-5)


def test_kinds_are_told_by_their_modules():
    class Mine(nn.Conv2d):
        pass

    assert op_of(Mine(1, 1, 1)) is OPS[nn.Conv2d]
    assert isinstance(Mine(1, 1, 1), MODULES)
    with pytest.raises(TypeError, match="A ReLU is no layer that can be quantized: Linear, Conv1d, Conv2d"):
        op_of(nn.ReLU())
